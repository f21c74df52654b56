"""The settings of a node: names, defaults, units and what is allowed. No I/O.

This module states the default of every setting; None means that `megaphone.config` computes the
default when the node starts. `megaphone.config` reads the settings from a file and the environment,
and checks them against the constraints in this module. If a value is wrong, the error message
contains the description of its constraint.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from msgspec import Meta

from megaphone.model import (
    ENDPOINT_PATTERN,
    MAX_NAME_LENGTH,
    MAX_TENANT_LENGTH,
    PORT_PATTERN,
    Action,
    AgentMode,
    ChannelLimits,
    Endpoint,
)


def whole(least: int, most: int) -> Meta:
    return Meta(ge=least, le=most, description=f"a whole number from {least} to {most}")


def seconds(least: float, most: float) -> Meta:
    return Meta(ge=least, le=most, description=f"a number of seconds from {least:g} to {most:g}")


DAY_S = 86_400
DEFAULT_TENANT = "default"
"""The name of the tenant of callers for whom no other one is set."""
MAX_CAPACITY = 100_000
MAX_TENANTS = 100

Name = Annotated[
    str,
    Meta(
        pattern=rf"^[A-Za-z0-9_-]{{1,{MAX_NAME_LENGTH}}}\Z",
        description=f"1 to {MAX_NAME_LENGTH} letters, digits, underscores and hyphens",
    ),
]
TenantName = Annotated[
    str,
    Meta(
        pattern=rf"^[A-Za-z0-9_-]{{1,{MAX_TENANT_LENGTH}}}\Z",
        description=f"1 to {MAX_TENANT_LENGTH} letters, digits, underscores and hyphens",
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
        pattern=r"^(\*|https?://[^\s/,]+)\Z",
        description="an origin such as https://example.com, or * for all",
    ),
]
PLAIN = r"[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2}"
"""The characters that need no escape anywhere in a URL. All others must be escaped, because the
broker calls an endpoint exactly as it is written."""
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
Destination = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9_.:/-]{1,255}\Z",
        description="a network such as 10.0.0.0/8, an address, or the name of a host",
    ),
]
Network = Annotated[
    str,
    Meta(
        pattern=r"^[0-9A-Fa-f.:]{2,45}(/[0-9]{1,3})?\Z",
        description="a network such as 10.0.0.0/8 or an address",
    ),
]
BASE64 = r"([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{4}|[A-Za-z0-9+/]{3}=|[A-Za-z0-9+/]{2}==)"
NO_ELLIPSIS = r"(?!whsec_|…\Z)\S(.*\S)?"
"""`megaphone config show` prints `…` instead of a secret, so `…` is not allowed as a secret."""
Secret = Annotated[
    str,
    Meta(
        pattern=rf"^(whsec_{BASE64}|{NO_ELLIPSIS})\Z",
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
CertificateName = Annotated[
    str,
    Meta(
        pattern=r"^[!-)+\--~]+\*?\Z|^\*\Z",
        description=(
            "a URI or a DNS name such as spiffe://example.org/shop, or the beginning of such names"
            " and then *"
        ),
    ),
]
IssuerText = Annotated[
    str,
    Meta(
        pattern=r"^[!-~]{1,1000}\Z",
        description="1 to 1000 ASCII characters without spaces, such as https://id.example.com",
    ),
]
PublicUrl = Annotated[
    str,
    Meta(
        pattern=rf"^https?://{HOST}(:{PORT_PATTERN})?{PATH}\Z",
        description="an http or https URL without a query, such as https://push.example.com",
    ),
]
KeysUrl = Annotated[
    str,
    Meta(
        pattern=(
            rf"^(https://{HOST}|http://(127(\.[0-9]{{1,3}}){{3}}|\[::1\]))"
            rf"(:{PORT_PATTERN})?{PATH}{QUERY}\Z"
        ),
        description=(
            "an https URL in ASCII, such as https://id.example.com/keys; http is allowed only for"
            " an address of this machine such as 127.0.0.1"
        ),
    ),
]
Algorithm = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA",
    "HS256",
]  # fmt: skip
MEMORY = "memory"
StoreText = Annotated[
    str,
    Meta(
        pattern=rf"^({MEMORY}|(redis|rediss)(\+(sentinel|cluster))?://[!-~]+|unix://[!-~]+)\Z",
        description=(
            "memory, or a URL such as redis://host:6379/0, rediss://user:password@host:6379/0,"
            " unix:///path/of/socket, redis+sentinel://host:26379/service or"
            " redis+cluster://host:6379,host2:6379"
        ),
    ),
]
Path = Annotated[str, Meta(min_length=1, description="a path")]
Prefix = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9._-]{1,64}\Z",
        description="1 to 64 letters, digits, dots, underscores and hyphens",
    ),
]
NodeUrl = Annotated[
    str,
    Meta(
        pattern=rf"^https?://{ENDPOINT_PATTERN}/?\Z",
        description=(
            "the gRPC address of a node, such as http://host:3001, or https://host:3002 for its"
            " `nodes.address`"
        ),
    ),
]
Sha256 = Annotated[
    str,
    Meta(
        pattern=r"^[0-9a-f]{64}\Z",
        description="64 hexadecimal digits in small letters: `megaphone token new` prints them",
    ),
]
StreamPattern = Annotated[
    str,
    Meta(
        pattern=r"^[^*,]+\*?\Z|^\*\Z",
        description="the id of a stream, or the beginning of such ids and then *",
    ),
]
Milliseconds = Annotated[int, whole(1, DAY_S * 1000)]
Seconds = Annotated[float, seconds(0.001, DAY_S)]
SecondsOrZero = Annotated[float, seconds(0, DAY_S)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """A service to which this node reports what happens. Endpoint and secret are never logged."""

    hook: Annotated[Literal["on-channel-deleted"], Meta(description="on-channel-deleted")] = (
        "on-channel-deleted"
    )
    """The kind of report: `on-channel-deleted` reports channels that have ended."""
    endpoint: Url = field(repr=False)
    """The URL to which the node sends its reports, by POST."""
    secret: Secret | None = field(default=None, repr=False)
    """The key that signs requests: the bytes of the text or, after `whsec_`, the bytes that the
    base64 stands for. Without it, requests are not signed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Nodes:
    """The nodes with which this node may exchange agents. The secrets are never logged."""

    secret: NodeSecret | None = field(default=None, repr=False)
    """A text that all nodes share. Two nodes prove to each other that they have it. Without it, a
    node that other machines can reach by gRPC accepts agents from nobody. Other nodes without it
    accept agents from processes on their own machine."""
    previous_secret: NodeSecret | None = field(default=None, repr=False)
    """A second secret, which the node accepts from other nodes but does not use when it calls them.
    Set it while you change the secret."""
    address: EndpointText | None = None
    """The host and port on which this node accepts agents over TLS from nodes that have a
    certificate. With it, nobody can replicate agents to this node on the port of `grpc_address`."""
    certificate: Path | None = None
    """The file of the certificate that this node shows other nodes, both when it calls them and
    when they call it, in the form of `tls.certificate`."""
    key: Path | None = None
    """The file of the private key of the certificate."""
    ca: Path | None = None
    """The file of the authorities that issue the certificates of nodes."""
    names: tuple[CertificateName, ...] = ()
    """Which certificates belong to nodes: one of the URIs or DNS names of a certificate must be
    here, or begin with what stands here before a final `*`."""
    open: bool = False
    """Accept agents from everybody who can reach this node, and replicate agents to targets that
    have not proved that they have the secret. Set this for the Rust broker (0.10), which has no
    secret."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Issuer:
    """An identity provider, or a service of your own, whose tokens (JWT) are valid here. Its keys
    come from `public_key_file`, from `secret` or from `jwks_url`; without all of them, the issuer
    says where they are, by OpenID Connect Discovery. The secret is never logged."""

    issuer: IssuerText
    """The `iss` of its tokens, letter by letter. For discovery it is also a URL."""
    audience: IssuerText
    """The `aud` that its tokens have if they are meant for this broker, such as the URL at which
    clients reach it."""
    jwks_url: KeysUrl | None = None
    """Where its public keys are, as a set of JWKs. The node gets them at its start, every five
    minutes, and when a token names a key that it does not know. It follows no redirect."""
    public_key_file: Path | None = None
    """A file with its public key or certificate in PEM, or with a set of JWKs."""
    secret: NodeSecret | None = field(default=None, repr=False)
    """A secret that it shares with this node, to sign by HS256."""
    algorithms: tuple[Algorithm, ...] = ()
    """The algorithms with which its tokens may be signed. EdDSA is Ed25519, under both names.
    Default: RS256, ES256 and EdDSA, or with a secret HS256."""
    tenant: TenantName = DEFAULT_TENANT
    """The tenant of all its tokens, unless `tenant_claim` is set."""
    tenant_claim: Annotated[str, Meta(min_length=1, description="the name of a claim")] | None = (
        None
    )
    """The claim of its tokens that names their tenant. A token without it is not valid here."""
    rfc9068: bool = False
    """Accept only tokens whose header has the `typ` of RFC 9068, `at+jwt`."""
    leeway_secs: Annotated[float, seconds(0, 300)] = 30.0
    """By how much the clock of the issuer may differ from that of this node."""

    @property
    def allowed_algorithms(self) -> tuple[str, ...]:
        """`algorithms`, or what stands for it."""
        if self.algorithms:
            return self.algorithms
        return ("RS256", "ES256", "EdDSA") if self.secret is None else ("HS256",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """The certificate of this node, for HTTP and gRPC. The files are in PEM form. They are read
    again when their contents change, and new connections use the new ones."""

    certificate: Path | None = None
    """The file of the certificate, followed by those of its issuers except the root. With it, both
    ports take only TLS. Its key may be of the kinds P-256, P-384 and RSA."""
    key: Path | None = None
    """The file of the private key of the certificate. It must not be encrypted."""
    client_ca: Path | None = None
    """The file of the authorities that issue client certificates. With it, every client of both
    ports needs a certificate."""


PerSecond = Annotated[
    float, Meta(ge=0.001, le=1e12, description="a number a second, from 0.001 to 1e12")
]


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantLimits:
    """The limits of one tenant. Without a setting only the limits of the node apply."""

    creates_per_s: PerSecond | None = None
    """How many channels the tenant may create in a second: on this node; with a shared store, on
    all nodes together."""
    channels: Annotated[int, whole(0, 100_000_000)] | None = None
    """The largest number of channels of the tenant: on this node; with a shared store, on all nodes
    together, of those that were created since the limit was set."""
    reads: Annotated[int, whole(0, 100_000_000)] | None = None
    """The largest number of channels that the tenant may read at once on this node."""
    writes_per_s: PerSecond | None = None
    """How many events the tenant may write in a second on this node. A batch counts its channels
    times its messages."""
    bytes_per_s: PerSecond | None = None
    """The same in bytes of events."""
    buffered_bytes: Annotated[int, whole(0, 1 << 50)] | None = None
    """How much of `max_buffered_bytes` the channels of the tenant may use, with all their events,
    with a store in memory."""
    channel_ttl_secs: Seconds | None = None
    """The TTL of a channel whose creator asks for none, in place of that of the node."""
    max_channel_ttl_secs: Seconds | None = None
    """The longest TTL for which a creator may ask, in place of that of the node."""
    buffer_capacity: Annotated[int, whole(1, MAX_CAPACITY)] | None = None
    """The capacity of a channel whose creator asks for none, in place of that of the node."""
    max_buffer_capacity: Annotated[int, whole(1, MAX_CAPACITY)] | None = None
    """The largest capacity for which a creator may ask, in place of that of the node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A token, and what its owner may do. The settings have only a hash of it."""

    sha256: Sha256 = field(repr=False)
    """The SHA-256 of the token."""
    previous_sha256: Sha256 | None = field(default=None, repr=False)
    """The SHA-256 of a second token, which is as good as the first. Set it while you change the
    token."""
    tenant: TenantName = DEFAULT_TENANT
    """The tenant to which the owner of the token belongs."""
    actions: tuple[Action, ...]
    """What the owner of the token may do besides what everybody may do."""
    streams: tuple[StreamPattern, ...] = ("*",)
    """The streams to which the token allows writes, and which it allows to be read. A read with a
    token for some streams must name the streams that it wants."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientCertificates:
    """Clients who are known by their certificates, and what they may do. If such a client sends a
    token too, that counts instead of its certificate."""

    names: tuple[CertificateName, ...]
    """The names in the certificates: URIs such as SPIFFE IDs, and DNS names. A name with a final
    `*` stands for all names that begin so; end it at a `/` or a dot. If several entries fit, the
    one with the longest name counts."""
    tenant: TenantName = DEFAULT_TENANT
    """The tenant to which the clients belong."""
    actions: tuple[Action, ...]
    """What the clients may do besides what everybody may do."""
    streams: tuple[StreamPattern, ...] = ("*",)
    """The streams to which they may write, and which they may read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Auth:
    """Who may do what. Without any of this, everybody who reaches the node may do everything, and
    the node looks at no token."""

    require: tuple[Action, ...] = ()
    """The actions that need a token, or a client certificate that `auth.certificates` names.
    Everybody may do the others. An environment variable has commas between the actions."""
    tokens: Mapping[Name, Token] = field(default_factory=dict)
    """Tokens, each under its own name. `megaphone token new NAME` makes one."""
    issuers: Mapping[Name, Issuer] = field(default_factory=dict)
    """Those whose tokens (JWT) are valid here, each under its own name."""
    certificates: Mapping[Name, ClientCertificates] = field(default_factory=dict)
    """Clients who are known by their certificates, each group under its own name. The node asks
    clients for certificates if `tls.client_ca` is set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that an operator can set. No setting is required."""

    # -- Where it listens

    address: EndpointText = "127.0.0.1:3000"
    """The host and port on which HTTP listens. Port 0 means any free port; 0.0.0.0 and [::] both
    mean all addresses of the machine, IPv4 and IPv6. Of a name with several addresses the node
    takes one, and rather IPv4."""
    grpc_address: EndpointText = "127.0.0.1:3001"
    """The host and port on which gRPC listens, as for `address`."""
    ops_address: EndpointText | None = None
    """The host and port on which `/livez`, `/readyz`, `/readyz/create`, `/metrics` and `/agents`
    are answered, by HTTP without TLS and without tokens, for supervisors, Prometheus and proxies of
    your own. With it, `/metrics` and `/agents` are not on the port of `address`."""
    mng_socket_path: Path | None = None
    """The Unix socket of the admin API. Default: /run/megaphone.sock if this user may write there,
    otherwise a socket in the user's runtime directory or in the directory for temporary files."""

    tls: Tls = field(default_factory=Tls)
    """The certificate of this node. Without it, both ports are plain text."""

    # -- Agents

    agent: Mapping[Name, AgentMode] = field(default_factory=dict)
    """The agents of this node and their modes. A file or an environment variable may also give only
    a name: then the node has one agent, a MASTER. Default: as many as `agent_count` says."""
    agent_count: Annotated[int, whole(1, 1_000)] | None = None
    """How many agents the node makes if `agent` names none. They are MASTERs, warm at once, and get
    new names at each start: 16 hexadecimal digits. A node hands over one agent after the other, so
    with more of them each takes fewer channels along. Default: 1."""
    agent_warmup_secs: SecondsOrZero = 60.0
    """How long a new agent waits before it takes channels, so that proxies can learn about it."""
    promote_replicas: bool = True
    """Make a REPLICA a MASTER when its source says that it has sent everything."""

    # -- Other nodes

    nodes: Nodes = field(default_factory=Nodes)
    """The nodes with which this node may exchange agents."""
    drain_target: NodeUrl | None = None
    """The node to which this node moves its agents when it stops. Without it, they end with this
    node."""
    drain_timeout_secs: Seconds = 30.0
    """How long a stopping node may take to move its agents, or, if the channels are in a shared
    store, to serve its gRPC clients until they have gone."""
    drain_target_gone_secs: Seconds | None = None
    """When the name of `drain_target` has not existed for this long, a stopping node gives up,
    because nobody will take its agents. Set it where the name lasts as long as any node, as that of
    a headless service of Kubernetes. Without it, a node looks until `drain_timeout_secs` is
    over."""

    # -- Who may do what

    auth: Auth = field(default_factory=Auth)
    """Who may do what. SIGHUP lets changes take effect."""
    public_url: PublicUrl | None = None
    """The URL at which clients reach HTTP, through a proxy or not. With it and an issuer, the node
    says at `/.well-known/oauth-protected-resource` where clients get tokens (RFC 9728)."""

    # -- The store

    store: StoreText = field(default=MEMORY, repr=False)
    """Where the channels are: `memory`, which is this node's own, or the URL of a Redis or Valkey
    that many nodes share. It is never logged, because it may contain a password."""
    store_wait_replicas: Annotated[int, whole(0, 10)] = 0
    """How many replicas of the store must have an event before its writer gets 201. If too few have
    it within a second, the writer gets STORE_UNAVAILABLE instead."""
    store_password_file: Path | None = None
    """A file whose first line is the password of the store, if its URL has none."""
    store_prefix: Prefix = "megaphone"
    """What the names of all keys of the store begin with. Nodes share their channels if they have
    the same store and the same prefix."""

    # -- Workers

    workers: Annotated[int, whole(0, 1_024)] = 1
    """How many processes serve the same ports, each a node of its own; 0 means as many as there are
    cores. More than one needs a store that nodes share. Each limit below applies to each worker."""

    grpc_connection_age_secs: Annotated[float, seconds(1, DAY_S)] = 30.0
    """How long a gRPC connection takes new calls, if the channels are in a shared store. Then the
    client makes another connection, which may reach another node or worker; it does that by itself.
    A node that stops, and a worker that is replaced, serves its gRPC clients for so long."""

    # -- Reads, writes and the life of a channel

    poll_duration_millis: Milliseconds = 20_000
    """How long a read stays open before it ends cleanly and the client reads again, unless the
    client asks for another time."""
    max_read_secs: Seconds = 3600.0
    """The longest time for which a client may ask by `wait_ms`, if that is longer than the poll
    duration."""
    channel_ttl_secs: Seconds = 60.0
    """How long a channel lives after its last read has ended, or, if it was never read, after it
    was created, unless its creator asks for another time. A channel that comes from another node
    keeps the time that it had there."""
    redelivery_window_secs: SecondsOrZero = 10.0
    """After a broken read, a plain reader gets again the events that it was sent within this time,
    and perhaps some that it was sent up to 0.5 % of this time before. With 0 it gets again only
    events that were not completely sent."""
    write_timeout_millis: Milliseconds = 10_000
    """How long a write to a full channel waits for a free place."""

    # -- Limits

    buffer_capacity: Annotated[int, whole(1, MAX_CAPACITY)] = 100
    """How many places a channel has for events that are not delivered yet, unless its creator asks
    for another number. A channel that comes from another node keeps the capacity that it had there.
    """
    max_channel_ttl_secs: Seconds = 3600.0
    """The longest TTL for which the creator of a channel may ask, if that is longer than
    `channel_ttl_secs`."""
    max_buffer_capacity: Annotated[int, whole(1, MAX_CAPACITY)] = 10_000
    """The largest capacity for which the creator of a channel may ask, if that is larger than
    `buffer_capacity`."""
    max_channels: Annotated[int, whole(1, 100_000_000)] = 100_000
    """The largest number of channels on this node."""
    max_replicas: Annotated[int, whole(1, 100_000)] = 1_000
    """The largest number of agents that other nodes may add to this node."""
    max_waiting_writers: Annotated[int, whole(0, 1_000_000)] = 1_000
    """The largest number of writers that may wait for a place in one channel. The node refuses
    further writers."""
    max_buffered_bytes: Annotated[int, whole(1_048_576, 1 << 50)] | None = None
    """How much memory clients may make this node use: for channels, events, waiting writers,
    request bodies that are being received, and data on its way to readers. Default: half of the
    memory that the system allows this process, but of less than 320 MiB all but 160 MiB, which the
    process itself may need. Several workers share that memory."""
    max_connections: Annotated[int, whole(1, 1_000_000)] | None = None
    """The largest number of open connections for HTTP, and the same number for gRPC. The node
    refuses further connections. Default: half of the number for which the descriptors (`ulimit -n`)
    and an eighth of the memory are enough, at 16 KB per connection, or 32 KB with TLS. The number
    is never larger than the descriptors allow."""
    max_body_bytes: Annotated[int, whole(1, 1_073_741_824)] = 1_048_576
    """The size of the largest request body, and so of the largest event."""
    max_batch_events: Annotated[int, whole(1, 10_000_000)] = 100_000
    """The largest number of events that one batch, or one message of `Publish`, may write. A batch
    writes as many events as its channels times its messages."""
    max_addresses: Annotated[int, whole(1, 10_000_000)] = 10_000
    """The largest number of addresses that one request may name."""

    max_connections_per_ip: Annotated[int, whole(1, 1_000_000)] | None = None
    """The largest number of open connections for HTTP from one address, or from one IPv6 network of
    64 bits. The node refuses further connections, but for a few health probes. Those of
    `trusted_proxies` have no such limit."""
    creates_per_s_per_ip: PerSecond | None = None
    """How many channels callers without a token may create in a second from one address, or from
    one IPv6 network of 64 bits."""
    auth_failures_per_s: PerSecond | None = None
    """How many tokens may be refused in a second at one address, or at one IPv6 network of 64 bits.
    After that the node looks at no token that it does not know, until the rate allows it."""
    trusted_proxies: tuple[Network, ...] = ()
    """The networks and addresses of proxies before the node. The node believes what they say in
    `X-Forwarded-For` of the address of a client. An environment variable has commas between the
    entries."""
    tenants: Annotated[Mapping[TenantName, TenantLimits], Meta(max_length=MAX_TENANTS)] = field(
        default_factory=dict
    )
    """The shares of tenants, each under its own name; at most 100. Callers without a token, and
    those whose token, issuer or certificate has no `tenant` in the settings, belong to the tenant
    `default`. A tenant that is not here has the limits of `default`, but counts for itself.
    [limits.md](limits.md) explains all of them."""

    # -- Webhooks, browsers and tools

    webhooks: Mapping[Name, Webhook] = field(default_factory=dict)
    """Services to which the node reports channels that have ended, each under its own name."""
    webhooks_allow: tuple[Destination, ...] = ()
    """What webhooks may call besides public addresses: networks, addresses, and names of hosts,
    whose addresses may be any. Without it, the node refuses endpoints on loopback, in private
    networks and at other special addresses, whether the endpoint is such an address or a name that
    has it. An environment variable has commas between the entries."""
    cors_allow_origin: tuple[Origin, ...] = ()
    """The origins whose pages may read and acknowledge in a browser, or `*` for all origins.
    Without it, only pages of the same origin as the broker can do so. If a proxy stands before the
    broker, that is the origin of the proxy. Pages of these origins may also create channels; those
    of the others, for which `*` stands, may not. A text has commas between the origins."""
    legacy_channel_id_writes: bool = False
    """Allow writes to consumer addresses, as the Rust broker (0.10) does."""
    http_lane: bool = True
    """Answer the most frequent HTTP requests by a short way. With false, aiohttp answers all of
    them: the answers are the same, but they cost several times as much."""
    http_pages: bool = True
    """Serve pages for people: `/`, which shows whether the node is well and lets them try a
    channel, and `/docs`, the description of the HTTP API, which is also at `/openapi.json`."""
    grpc_reflection: bool | None = None
    """Serve gRPC reflection, which tools such as grpcurl use. Default: true if gRPC listens on
    loopback, otherwise false. The admin socket has reflection unless this is false."""
    log_format: Literal["auto", "text", "json"] = "auto"
    """Log lines for people (`text`) or in JSON; `auto` means text on a terminal, JSON elsewhere."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The lowest level of the log lines that the node writes."""
    access_log: Literal["off", "errors", "all"] = "off"
    """Log each call of a client that was refused or has failed (`errors`), or each call (`all`).
    The lines say what was called, by whom, and how it ended, and have no address."""

    @property
    def http_endpoint(self) -> Endpoint:
        """`address`, as a value."""
        return Endpoint.parse(self.address)

    @property
    def ops_endpoint(self) -> Endpoint | None:
        """`ops_address`, as a value."""
        return None if self.ops_address is None else Endpoint.parse(self.ops_address)

    @property
    def nodes_endpoint(self) -> Endpoint | None:
        """`nodes.address`, as a value."""
        return None if self.nodes.address is None else Endpoint.parse(self.nodes.address)

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
