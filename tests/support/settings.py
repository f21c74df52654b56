"""Settings for a node in a test: it uses free loopback ports and takes channels at once."""

import atexit
import os
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from megaphone.model import AgentMode, ChannelLimits
from megaphone.settings import Settings
from tests.support import leaks
from tests.support.certificates import Certificates, make_certificates

LANE_OFF = "MEGAPHONE_TESTED_WITHOUT_LANE"
"""A variable: if it is set, all brokers of the tests have their lane switched off."""
IS_LONG = "MEGAPHONE_TESTED_LONG" in os.environ
"""Whether the tests that repeat something many times do it as often as the documents say. Without
this variable they do the same things less often."""


@cache
def certificates() -> Certificates:
    """Return the certificates of the brokers of this run."""
    folder = mkdtemp(prefix="megaphone-certificates-")
    atexit.register(shutil.rmtree, folder)
    return make_certificates(Path(folder))


def lane_settings() -> dict[str, Any]:
    """Return the setting of the lane for all brokers of this run."""
    return {"http_lane": False} if LANE_OFF in os.environ else {}


def fast_settings(**changes: Any) -> Settings:
    """Return these settings with some of them changed."""
    defaults: dict[str, Any] = {
        "address": "127.0.0.1:0",
        "grpc_address": "127.0.0.1:0",
        "agent": {"node": AgentMode.MASTER},
        "agent_warmup_secs": 0,
        "poll_duration_millis": 10_000,
    }
    settings = Settings(**defaults | lane_settings() | changes)
    leaks.keep_secrets({"settings": settings})
    return settings


def limits(**changes: Any) -> ChannelLimits:
    """Return the default limits of a channel, with some of them changed."""
    return replace(Settings().channel_limits(), **changes)
