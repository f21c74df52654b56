"""The settings of a node: names, defaults, units and what is allowed. No I/O.

Every default lives here and nowhere else. `megaphone.config` reads them from a file and the
environment, and checks them against the constraints written here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from msgspec import Meta

from megaphone.model import AgentMode, ChannelLimits

AGENT_NAME_PATTERN = r"^[A-Za-z0-9_-]+$"
ENDPOINT_PATTERN = r"^(\[[0-9A-Fa-f:.%]+\]|[^\[\]:/\s]+):[0-9]{1,5}$"

AgentName = Annotated[str, Meta(pattern=AGENT_NAME_PATTERN, max_length=100)]
Endpoint = Annotated[str, Meta(pattern=ENDPOINT_PATTERN)]
Milliseconds = Annotated[int, Meta(ge=1, le=86_400_000)]
Seconds = Annotated[float, Meta(ge=0.001, le=86_400)]
SecondsOrZero = Annotated[float, Meta(ge=0, le=86_400)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything an operator can set. Nothing is required."""

    address: Endpoint = "0.0.0.0:3000"
    """Where HTTP is served, as host:port; port 0 takes a free one."""
    grpc_address: Endpoint = "0.0.0.0:3001"
    """Where gRPC is served, as host:port; port 0 takes a free one."""
    agents: Mapping[AgentName, AgentMode] = field(default_factory=dict)
    """The virtual agents of this node (key `agent` in files): a name, or name = mode."""
    agent_warmup_secs: SecondsOrZero = 60.0
    """How long a new agent waits before it takes channels, so that proxies learn of it."""

    poll_duration_millis: Milliseconds = 20_000
    """How long a read stays open before it ends cleanly and the client comes back."""
    channel_ttl_secs: Seconds = 60.0
    """How long a channel lives after its last read has ended, or after it was made."""
    redelivery_window_secs: SecondsOrZero = 10.0
    """How old an event may be that a plain reader gets again after a broken read; 0: never."""
    write_timeout_millis: Milliseconds = 10_000
    """How long a write to a full channel waits for room."""

    buffer_capacity: Annotated[int, Meta(ge=1, le=100_000)] = 100
    """Events that a channel holds for its reader."""
    max_channels: Annotated[int, Meta(ge=1, le=100_000_000)] = 100_000
    """Channels that this node holds at once."""
    max_body_bytes: Annotated[int, Meta(ge=1, le=1_073_741_824)] = 1_048_576
    """The largest request body, and so the largest event."""
    max_batch_events: Annotated[int, Meta(ge=1, le=10_000_000)] = 10_000
    """The most events one batch may write: its channels times its messages."""

    legacy_channel_id_writes: bool = False
    """Let consumer addresses write too, as the broker before 0.11 did."""
    grpc_reflection: bool = True
    """Answer gRPC server reflection, for grpcurl and the like."""
    log_format: Literal["auto", "text", "json"] = "auto"
    """Lines for people, or JSON; `auto` is text on a terminal and JSON elsewhere."""

    def channel_limits(self) -> ChannelLimits:
        return ChannelLimits(
            capacity=self.buffer_capacity,
            ttl_s=self.channel_ttl_secs,
            redelivery_window_s=self.redelivery_window_secs,
        )
