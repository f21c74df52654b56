"""Settings for a node in a test: on free loopback ports, and ready for channels at once."""

from typing import Any

from megaphone.model import AgentMode
from megaphone.settings import Settings


def fast_settings(**changes: Any) -> Settings:
    """Return settings with the names in `changes` set otherwise."""
    defaults: dict[str, Any] = {
        "address": "127.0.0.1:0",
        "grpc_address": "127.0.0.1:0",
        "agent": {"node": AgentMode.MASTER},
        "agent_warmup_secs": 0,
        "poll_duration_millis": 10_000,
    }
    return Settings(**defaults | changes)
