"""The settings of a node: names, defaults, units and what is allowed. No I/O.

Every default lives here and nowhere else. `megaphone.config` reads them from a file and the
environment, and checks them against the constraints written here; the description of a constraint
is what a wrong value is answered with.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from msgspec import Meta

from megaphone.model import (
    ENDPOINT_PATTERN,
    MAX_NAME_LENGTH,
    PORT_PATTERN,
    AgentMode,
    ChannelLimits,
    Endpoint,
)


def whole(least: int, most: int) -> Meta:
    return Meta(ge=least, le=most, description=f"a whole number from {least} to {most}")


def seconds(least: float, most: float) -> Meta:
    return Meta(ge=least, le=most, description=f"a number of seconds from {least:g} to {most:g}")


DAY_S = 86_400
MAX_CAPACITY = 100_000

Name = Annotated[
    str,
    Meta(
        pattern=rf"^[A-Za-z0-9_-]{{1,{MAX_NAME_LENGTH}}}\Z",
        description=f"1 to {MAX_NAME_LENGTH} letters, digits, underscores and hyphens",
    ),
]
EndpointText = Annotated[
    str,
    Meta(
        pattern=rf"^{ENDPOINT_PATTERN}\Z",
        description="host:port, such as 0.0.0.0:3000 or [::]:3000",
    ),
]
Origin = Annotated[
    str,
    Meta(
        pattern=r"^(\*|https?://[^\s/]+)$",
        description="an origin such as https://example.com, or * for all",
    ),
]
PLAIN = r"[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2}"
"""The characters that mean themselves everywhere in a URL. Any others must be escaped: an endpoint
is called just as it is written."""
USER = rf"(({PLAIN}|:)*@)?"
HOST = r"(\[[0-9A-Fa-f]*:[0-9A-Fa-f:.]+\]|[A-Za-z0-9][A-Za-z0-9._-]*)"
PATH = rf"(/({PLAIN}|[:@/])*)?"
QUERY = rf"(\?({PLAIN}|[:@/?])*)?"
Url = Annotated[
    str,
    Meta(
        pattern=rf"^(?i:https?)://{USER}{HOST}(:{PORT_PATTERN})?{PATH}{QUERY}\Z",
        description="an http or https URL in ASCII, such as https://example.com/gone",
    ),
]
BASE64 = r"([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{4}|[A-Za-z0-9+/]{3}=|[A-Za-z0-9+/]{2}==)"
PLAIN_SECRET = r"(?!whsec_|…\Z)\S(.*\S)?"
"""The dots are what `megaphone config show` prints in the place of a secret."""
Secret = Annotated[
    str,
    Meta(
        pattern=rf"^(whsec_{BASE64}|{PLAIN_SECRET})\Z",
        description="a text without spaces around it, or whsec_ followed by a key in base64",
    ),
]
NodeSecret = Annotated[
    str,
    Meta(
        pattern=r"^[!-~]{32,}\Z",
        description=(
            "at least 32 ASCII characters without spaces: `openssl rand -base64 32` makes them"
        ),
    ),
]
NodeUrl = Annotated[
    str,
    Meta(
        pattern=rf"^http://{ENDPOINT_PATTERN}/?\Z",
        description="the gRPC address of a node, such as http://host:3001",
    ),
]
Milliseconds = Annotated[int, whole(1, DAY_S * 1000)]
Seconds = Annotated[float, seconds(0.001, DAY_S)]
SecondsOrZero = Annotated[float, seconds(0, DAY_S)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """A service that is told of what happens here. Its endpoint and its secret are never logged."""

    hook: Annotated[Literal["on-channel-deleted"], Meta(description="on-channel-deleted")] = (
        "on-channel-deleted"
    )
    """What it is told of: that channels have gone, expired or disposed of."""
    endpoint: Url = field(repr=False)
    """Where it is told so, by POST."""
    secret: Secret | None = field(default=None, repr=False)
    """What requests are signed with: the bytes of the text or, after `whsec_`, those that the
    base64 stands for. Unless it is set they are not signed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Nodes:
    """Which other nodes may feed this one, and which it feeds. The secrets are never logged."""

    secret: NodeSecret | None = field(default=None, repr=False)
    """What nodes prove to each other to have, the same on all of them. Unless it is set, only
    processes of this machine may feed the node, and none if gRPC listens for others too."""
    previous_secret: NodeSecret | None = field(default=None, repr=False)
    """Another secret that is taken too, but not used to call others: while the secret changes."""
    open: bool = False
    """Let everybody who reaches the node feed it, and let it feed nodes without a secret, as the
    Rust broker (0.10) is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything an operator can set. Nothing is required."""

    address: EndpointText = "127.0.0.1:3000"
    """Where HTTP is served, as host:port; port 0 takes a free one. 0.0.0.0 is for all of IPv4."""
    grpc_address: EndpointText = "127.0.0.1:3001"
    """Where gRPC is served, as host:port; port 0 takes a free one. 0.0.0.0 is for all of IPv4."""
    mng_socket_path: Annotated[str, Meta(min_length=1, description="a path")] | None = None
    """The Unix socket of the management API. Unless it is set: /run/megaphone.sock if this user may
    write there, else one in the user's runtime directory or in that for temporary files."""
    agent: Mapping[Name, AgentMode] = field(default_factory=dict)
    """The virtual agents of this node and their modes. A file or a variable may also give just a
    name, for one MASTER. Without any there is one, warm at once, with a new name at each start."""
    agent_warmup_secs: SecondsOrZero = 60.0
    """How long a new agent waits before it takes channels, so that proxies learn of it."""
    promote_replicas: bool = True
    """Make a replica a MASTER when the node that feeds it says that its channels are complete."""

    nodes: Nodes = field(default_factory=Nodes)
    """Which nodes may forward their agents to which."""
    drain_target: NodeUrl | None = None
    """Where this node hands its agents over when it stops. Unless it is set, they go with it."""
    drain_timeout_secs: Seconds = 30.0
    """How long a stopping node may take to forward what its channels hold."""

    poll_duration_millis: Milliseconds = 20_000
    """How long a read stays open before it ends cleanly and the client comes back."""
    channel_ttl_secs: Seconds = 60.0
    """How long a channel lives after its last read has ended, or after it was made."""
    redelivery_window_secs: SecondsOrZero = 10.0
    """How long ago an event was sent that a plain reader gets again after a broken read. With 0 it
    gets only what was not wholly sent."""
    write_timeout_millis: Milliseconds = 10_000
    """How long a write to a full channel waits for room."""

    buffer_capacity: Annotated[int, whole(1, MAX_CAPACITY)] = 100
    """Events that a channel holds for its reader. One that comes from another node keeps the
    capacity that it was made with."""
    max_channels: Annotated[int, whole(1, 100_000_000)] = 100_000
    """Channels that this node holds at once."""
    max_replicas: Annotated[int, whole(1, 100_000)] = 1_000
    """Agents that other nodes may bring to this one, at once."""
    max_waiting_writers: Annotated[int, whole(0, 1_000_000)] = 1_000
    """Writers that wait for room in one channel at once; more are refused."""
    max_buffered_bytes: Annotated[int, whole(1_048_576, 1 << 50)] | None = None
    """Memory that clients may make this node use: channels, events, writers that wait, bodies that
    are being received, and what is under way to readers. Unless it is set: half of what the system
    lets this process have."""
    max_connections: Annotated[int, whole(1, 1_000_000)] | None = None
    """Connections that HTTP and gRPC each have at once; more are refused. Unless it is set: half of
    what descriptors (`ulimit -n`) and an eighth of the memory are enough for, at 16 KB each. It is
    never more than there are descriptors for."""
    max_body_bytes: Annotated[int, whole(1, 1_073_741_824)] = 1_048_576
    """The largest request body, and so the largest event."""
    max_batch_events: Annotated[int, whole(1, 10_000_000)] = 100_000
    """The most events one batch, or one message of `Publish`, may write. Those of a batch are its
    channels times its messages."""
    max_addresses: Annotated[int, whole(1, 10_000_000)] = 10_000
    """The most addresses that one request may name, to write to or to ask about."""

    webhooks: Mapping[Name, Webhook] = field(default_factory=dict)
    """Services that are told when channels have gone, each under a name of its own."""
    cors_allow_origin: Origin | None = None
    """The origin whose pages may read and acknowledge from a browser, or `*` for all. Unless it is
    set, only pages of the broker's own origin (or that of a proxy before it) can."""
    legacy_channel_id_writes: bool = False
    """Let consumer addresses write too, as the broker before 0.11 did."""
    grpc_reflection: bool = True
    """Answer gRPC server reflection, for grpcurl and the like."""
    log_format: Literal["auto", "text", "json"] = "auto"
    """Lines for people, or JSON; `auto` is text on a terminal and JSON elsewhere."""

    @property
    def http_endpoint(self) -> Endpoint:
        """`address`, as a value."""
        return Endpoint.parse(self.address)

    @property
    def grpc_endpoint(self) -> Endpoint:
        """`grpc_address`, as a value."""
        return Endpoint.parse(self.grpc_address)

    def channel_limits(self) -> ChannelLimits:
        return ChannelLimits(
            capacity=self.buffer_capacity,
            ttl_s=self.channel_ttl_secs,
            redelivery_window_s=self.redelivery_window_secs,
            max_waiting_writers=self.max_waiting_writers,
        )
