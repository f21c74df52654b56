"""Settings for a node in a test: it uses free loopback ports and takes channels at once."""

from dataclasses import replace
from typing import Any

from megaphone.model import AgentMode, ChannelLimits
from megaphone.settings import Settings


def fast_settings(**changes: Any) -> Settings:
    """Return these settings with some of them changed."""
    defaults: dict[str, Any] = {
        "address": "127.0.0.1:0",
        "grpc_address": "127.0.0.1:0",
        "agent": {"node": AgentMode.MASTER},
        "agent_warmup_secs": 0,
        "poll_duration_millis": 10_000,
    }
    return Settings(**defaults | changes)


def limits(**changes: Any) -> ChannelLimits:
    """Return the default limits of a channel, with some of them changed."""
    return replace(Settings().channel_limits(), **changes)
