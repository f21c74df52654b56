"""Reads the settings: defaults, then one file, then the environment.

The file is `megaphone.toml`, `.yaml` or `.json` in the working directory. Variables are named
`megaphone_KEY`, in this or in upper case, with dots for nested keys, such as
`megaphone_agent.virtual.node1=MASTER`. Every mistake raises a `ConfigError`, which says in one line
where the value is, what it is unless it may be secret, and which values are allowed.
"""

import json
import os
import re
import secrets
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from difflib import get_close_matches
from enum import Enum
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

import msgspec
import yaml

from megaphone.core.destinations import Destinations
from megaphone.model import AgentMode, Endpoint
from megaphone.process import memory
from megaphone.process.cores import workers_for
from megaphone.settings import (
    MAX_TENANTS,
    MEMORY,
    Auth,
    ClientCertificates,
    Issuer,
    KeysUrl,
    Name,
    Nodes,
    Settings,
    TenantLimits,
    TenantName,
    Tls,
    Token,
    Webhook,
)

PREFIX = "megaphone_"
FILE_NAMES = ("megaphone.toml", "megaphone.yaml", "megaphone.yml", "megaphone.json")
AGENT = "agent"
AGENT_COUNT = "agent_count"
WEBHOOKS = "webhooks"
TENANTS = "tenants"
WEBHOOKS_ALLOW = "webhooks_allow"
PROXIES = "trusted_proxies"
NODES = "nodes"
TLS = "tls"
TABLES = {NODES: Nodes, TLS: Tls}
"""The keys whose value is one table, and the type of that table."""
AUTH = "auth"
TOKENS = "tokens"
ISSUERS = "issuers"
CERTIFICATES = "certificates"
HMAC = "HS256"
CONFIGURABLE_MODES = (AgentMode.MASTER.value, AgentMode.REPLICA.value)
"""The modes in which an agent may start. An agent cannot start as PIPED, because that mode needs a
target."""
FORMS = {
    AGENT: 'a name, or a table such as agent.virtual.node1 = "MASTER"',
    WEBHOOKS: 'tables such as webhooks.name = {hook = "on-channel-deleted", endpoint = URL}',
    AUTH: 'tables such as auth = {require = ["create"]} and auth.tokens.name = {sha256 = TEXT, …}',
    TENANTS: "tables such as tenants.name = {writes_per_s = 500, channels = 1000}",
    NODES: "a table such as nodes = {secret = TEXT, open = false}",
    TLS: "a table such as tls = {certificate = FILE, key = FILE}",
}
"""The allowed forms of keys with more than one value."""
AGENT_NAME_BYTES = 8
DEFAULT = "default"
VARIABLE = "variable "
"""How the source of a value from the environment begins."""
SOCKET = "mng_socket_path"
MAX_SOCKET_PATH_BYTES = 107
"""How long the path of a socket may be on Linux. See unix(7)."""
ANY_PORT = 0
STORE = "store"
WARMUP = "agent_warmup_secs"
WORKERS = "workers"
BUFFERED = "max_buffered_bytes"
COMPUTED = (AGENT, WARMUP, SOCKET, BUFFERED)
"""The keys whose defaults depend on the machine or on chance."""

TYPES = get_type_hints(Settings, include_extras=True)
KEYS = [setting.name for setting in fields(Settings)]
PARSERS: Mapping[str, Callable[[str], Any]] = {
    ".toml": tomllib.loads,
    ".yaml": yaml.safe_load,
    ".yml": yaml.safe_load,
    ".json": json.loads,
}


Table = TypeVar("Table")


class ConfigError(Exception):
    """A setting is not allowed. The text is one line for the operator."""


@dataclass(frozen=True, slots=True)
class Config:
    """The settings of this node, and the source of each."""

    settings: Settings
    sources: Mapping[str, str] = field(default_factory=dict)
    """The source of the value of each key: the name of a file or of a variable, or `default`. The
    members of `nodes` and of a webhook have keys of their own, such as
    `webhooks.audit.endpoint`."""


@dataclass(slots=True)
class Value:
    """The value of one key, as its sources give it, before it is checked."""

    raw: Any
    source: str
    parts: Mapping[str, str] = field(default_factory=dict)
    """The sources of the members of a table, by dotted path, if it has several sources."""

    def source_of(self, path: str) -> str:
        return self.parts.get(path, self.source)


def load(
    directory: Path,
    environment: Mapping[str, str],
    file: Path | None = None,
    options: Mapping[str, Any] | None = None,
) -> Config:
    """Read a file and then the environment. Without `file`, read the one in `directory`, if any.

    `options` are values from the command line, which win.

    Raises: ConfigError.
    """
    values: dict[str, Value] = {}
    chosen = file or find_file(directory)
    if chosen is not None:
        values |= read_file(chosen)
    for key, value in read_environment(environment).items():
        values[key] = overlay(values.get(key), value)
    values |= {key: Value(raw, f"--{key}") for key, raw in (options or {}).items()}
    return build(values, environment)


def load_here(file: Path | None = None, options: Mapping[str, Any] | None = None) -> Config:
    """Read the configuration in the working directory and environment. Raises: ConfigError."""
    return load(Path.cwd(), os.environ, file, options)


# -- Sources


def find_file(directory: Path) -> Path | None:
    found = [directory / name for name in FILE_NAMES if (directory / name).is_file()]
    if len(found) > 1:
        names = " and ".join(file.name for file in found)
        raise ConfigError(f"{names} are both here: keep one of them")
    return found[0] if found else None


def read_file(file: Path) -> dict[str, Value]:
    parse = PARSERS.get(file.suffix)
    if parse is None:
        raise ConfigError(f"{file.name}: the name must end in one of {', '.join(PARSERS)}")
    try:
        content = parse(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file.name}: cannot be read: {error.strerror}") from error
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{file.name}: is not {file.suffix[1:].upper()}: {describe(error)}"
        ) from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{file.name}: must hold keys with values at its top")
    for key in content:
        check_known(str(key), file.name)
    return {key: Value(raw, file.name) for key, raw in content.items()}


def read_environment(environment: Mapping[str, str]) -> dict[str, Value]:
    """Return the values in variables with our prefix.

    Unknown variables in upper case are ignored, because Kubernetes sets such variables for a
    service with the name megaphone.
    """
    values: dict[str, Value] = {}
    for name, text in environment.items():
        if not name.lower().startswith(PREFIX):
            continue
        key, *path = name[len(PREFIX) :].split(".")
        if key.lower() not in KEYS and name.startswith(PREFIX.upper()):
            continue
        key = key.lower()
        check_known(key, f"{VARIABLE}{name}")
        # The names of agents and webhooks stay as they are, because their case counts.
        if key in TABLES:
            path = [name.lower() for name in path]
        elif key == AUTH:  # only the second one is a name that somebody has chosen
            path = [name if place == 1 else name.lower() for place, name in enumerate(path)]
        values[key] = overlay(values.get(key), Value(nested(path, text), f"{VARIABLE}{name}"))
    return values


def describe(error: Exception) -> str:
    """Describe in one line why a file is malformed, without its text, which may hold a secret."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        # The error text of the parser quotes names from the file. A secret that stands in the file
        # without quotes may look like a name, so nothing quoted is shown.
        problem = re.sub(r"""(['"]).{2,}\1""", "…", error.problem or "")
        mark = error.problem_mark
        return f"{problem} in line {mark.line + 1}, column {mark.column + 1}"
    return " ".join(str(error).split())


def check_known(key: str, source: str, prefix: str = "", known: list[str] = KEYS) -> None:
    if key not in known:
        close = get_close_matches(key, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known keys are {', '.join(known)}"
        raise ConfigError(f"{source}: {prefix}{key} is not a known key; {hint}")


def nested(path: list[str], value: Any) -> Any:
    for name in reversed(path):
        value = {name: value}
    return value


def overlay(below: Value | None, above: Value) -> Value:
    """Return the value of a key in two sources, of which the later wins."""
    if below is None:
        return above
    parts = {path: value.source_of(path) for value in (below, above) for path in leaves(value.raw)}
    return Value(merged(below.raw, above.raw), above.source, parts)


def leaves(raw: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted paths of all values in a table, and in the tables within it."""
    if isinstance(raw, dict):
        for name, value in raw.items():
            yield from leaves(value, within(prefix, str(name)))
    else:
        yield prefix


def within(path: str, name: str) -> str:
    """Return the dotted path of a name in the table at a path."""
    return f"{path}.{name}" if path else name


def merged(below: Any, above: Any) -> Any:
    """Return a table with the entries of both tables. Where both have a value, or if one of the two
    is not a table, `above` wins."""
    if isinstance(below, dict) and isinstance(above, dict):
        return below | {key: merged(below.get(key), value) for key, value in above.items()}
    return above


# -- Values


def build(values: Mapping[str, Value], environment: Mapping[str, str]) -> Config:
    checked = {key: convert(key, value) for key, value in values.items()}
    sources = {key: values[key].source if key in values else DEFAULT for key in KEYS}
    if WEBHOOKS in values:
        for name in checked[WEBHOOKS]:
            sources |= member_sources(WEBHOOKS, Webhook, values[WEBHOOKS], name)
    if TENANTS in values:
        for name in checked[TENANTS]:
            sources |= member_sources(TENANTS, TenantLimits, values[TENANTS], name)
    for key, kind in TABLES.items():
        sources |= member_sources(key, kind, values.get(key, Value({}, DEFAULT)))
    sources |= auth_sources(values.get(AUTH, Value({}, DEFAULT)))
    if checked.get(AGENT):
        check_agents_are_not_counted(sources)
    else:
        checked[AGENT] = new_agents(checked.get(AGENT_COUNT) or 1)
        checked.setdefault(WARMUP, 0.0)
    checked.setdefault(SOCKET, default_socket_path(environment))
    workers = workers_for(checked.get(WORKERS, 1))
    checked.setdefault(BUFFERED, memory.bytes_for_clients(workers))
    settings = Settings(**checked)
    if settings.workers != 1 and settings.store == MEMORY:
        raise ConfigError(
            f"{sources[WORKERS]}: workers = {settings.workers} is not allowed with a store in"
            " memory, because each worker would have channels of its own that the others do not"
            " find; set store to the URL of a Redis or Valkey"
        )
    if (settings.drain_target or "").startswith("https:") and settings.nodes.certificate is None:
        raise ConfigError(
            f"{sources['drain_target']}: drain_target is at https://, but nodes.certificate is not"
            " set, without which the target takes this node for a stranger"
        )
    if settings.nodes.address is not None and settings.store != MEMORY:
        raise ConfigError(
            f"{sources['nodes.address']}: nodes.address is not allowed with a shared store, because"
            " nodes that share their channels replicate none"
        )
    check_webhooks(settings, sources)
    check_proxies(settings, sources)
    check_places(settings, sources)
    if settings.auth.certificates and settings.tls.client_ca is None:
        raise ConfigError(
            f"{sources[AUTH]}: {AUTH}.{CERTIFICATES} is set, but not tls.client_ca, without which"
            " clients show no certificates"
        )
    return Config(settings, sources)


def convert(key: str, value: Value) -> Any:
    if key == WEBHOOKS:
        return webhooks_table(value)
    if key == TENANTS:
        return tenants_table(value)
    if key == NODES:
        return nodes_table(value)
    if key == TLS:
        return tls_table(value)
    if key == AUTH:
        return auth_table(value)
    if key == AGENT:
        raw: Any = agents_table(value)
    else:
        raw = listed(value.raw, TYPES[key])
    try:
        return msgspec.convert(raw, TYPES[key], strict=False)
    except msgspec.ValidationError as error:
        if key == STORE:
            raise refused_unshown(key, value.source, allowed(TYPES[key]) or "") from None
        raise refused(key, value, allowed(TYPES[key]) or str(error)) from None


def listed(raw: Any, kind: Any) -> Any:
    """Return the entries of a list, if a file or a variable has them in one text with commas."""
    if not isinstance(raw, str) or get_origin(kind) is not tuple:
        return raw
    return [entry.strip() for entry in raw.split(",") if entry.strip()]


def refused(key: str, value: Value, what_is_allowed: str) -> ConfigError:
    return not_allowed(value.source, key, json.dumps(value.raw, default=str), what_is_allowed)


def refused_unshown(key: str, source: str, what_is_allowed: str) -> ConfigError:
    """Return the error for a value that may be secret, or may contain a secret."""
    return not_allowed(source, key, "…", what_is_allowed)


def not_allowed(source: str, key: str, shown: str, what_is_allowed: str) -> ConfigError:
    return ConfigError(f"{source}: {key} = {shown} is not allowed; allowed is {what_is_allowed}")


def allowed(kind: Any) -> str | None:
    """Describe which values a type allows; None if its own error says so."""
    if kind is bool:
        return "true or false"
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(get_args(kind))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return "one of " + ", ".join(member.value for member in kind)
    for note in getattr(kind, "__metadata__", ()):
        if isinstance(note, msgspec.Meta) and note.description:
            return note.description
    if get_origin(kind) is tuple:
        return f"a list, each entry of which is {allowed(get_args(kind)[0])}"
    if get_origin(kind) is Union:  # a type or None, which means "not set"
        return allowed(get_args(kind)[0])
    return None


def agents_table(value: Value) -> dict[str, str]:
    """Return the agents as a table of names and modes, whichever form the key has."""
    names, modes = allowed(get_args(TYPES[AGENT])[0]), " or ".join(CONFIGURABLE_MODES)
    match value.raw:
        case str(name):
            table = {name: AgentMode.MASTER.value}
        case {"virtual": dict(table), **others} if not others:
            pass
        case _:
            raise refused(AGENT, value, FORMS[AGENT])
    for name, mode in table.items():
        try:
            msgspec.convert(name, get_args(TYPES[AGENT])[0])
        except msgspec.ValidationError:
            raise refused(AGENT, Value(name, value.source), f"as a name {names}") from None
        if mode not in CONFIGURABLE_MODES:
            source = value.source_of(f"virtual.{name}")
            raise refused(f"agent.virtual.{name}", Value(mode, source), modes)
    return table


def webhooks_table(value: Value) -> dict[str, Webhook]:
    """Check the tables of webhooks member by member.

    So an error can name the place of a mistake without repeating a value that may be secret.
    """
    if not isinstance(value.raw, dict):
        raise refused_unshown(WEBHOOKS, value.source, FORMS[WEBHOOKS])
    names = get_args(TYPES[WEBHOOKS])[0]
    for name in value.raw:
        if not fits(name, names):
            raise refused_unshown(WEBHOOKS, value.source, f"as a name {allowed(names)}")
    return {name: checked_table(Webhook, WEBHOOKS, value, name) for name in value.raw}


def check_proxies(settings: Settings, sources: Mapping[str, str]) -> None:
    """Raises: ConfigError, if a proxy is not an address or a network."""
    for text in settings.trusted_proxies:
        try:
            ip_network(text, strict=False)
        except ValueError:
            raise ConfigError(
                f"{sources[PROXIES]}: {PROXIES}: {text} is neither a network nor an address"
            ) from None


def check_places(settings: Settings, sources: Mapping[str, str]) -> None:
    """Raises: ConfigError, if the node could not listen at all of its places at once."""
    keys: dict[Endpoint, str] = {}
    for key, endpoint in (
        ("address", settings.http_endpoint),
        ("grpc_address", settings.grpc_endpoint),
        ("nodes.address", settings.nodes_endpoint),
        ("ops_address", settings.ops_endpoint),
    ):
        if endpoint is None or endpoint.port == ANY_PORT:
            continue
        if endpoint in keys:
            raise ConfigError(
                f"{sources[key]}: {key} = {endpoint} is that of {keys[endpoint]} too: each needs a"
                " port of its own"
            )
        keys[endpoint] = key
    size = len(os.fsencode(settings.mng_socket_path or ""))
    if size > MAX_SOCKET_PATH_BYTES:
        raise ConfigError(
            f"{sources[SOCKET]}: {SOCKET} has {size} bytes; the path of a socket has at most"
            f" {MAX_SOCKET_PATH_BYTES}"
        )


def check_webhooks(settings: Settings, sources: Mapping[str, str]) -> None:
    """Raises: ConfigError, if a webhook could never be called. A name is checked at each call."""
    try:
        destinations = Destinations.parse(settings.webhooks_allow)
    except ValueError as error:
        raise ConfigError(f"{sources[WEBHOOKS_ALLOW]}: {WEBHOOKS_ALLOW}: {error}") from None
    for name, webhook in settings.webhooks.items():
        if not destinations.may_allow(urlsplit(webhook.endpoint).hostname or ""):
            path = f"{WEBHOOKS}.{name}.endpoint"
            raise ConfigError(
                f"{sources[path]}: {path} = … is not allowed, because its address is not public:"
                f" {WEBHOOKS_ALLOW} lists the networks and hosts that webhooks may call besides"
            )


def tenants_table(value: Value) -> dict[str, TenantLimits]:
    """Check the tables of tenants member by member."""
    if not isinstance(value.raw, dict) or len(value.raw) > MAX_TENANTS:
        raise refused_unshown(
            TENANTS, value.source, f"at most {MAX_TENANTS} tables: {FORMS[TENANTS]}"
        )
    for name in value.raw:
        if not fits(name, TenantName):
            raise refused(TENANTS, Value(name, value.source), f"as a name {allowed(TenantName)}")
    return {name: checked_table(TenantLimits, TENANTS, value, name) for name in value.raw}


def nodes_table(value: Value) -> Nodes:
    nodes = checked_table(Nodes, NODES, value)
    if nodes.previous_secret is not None and nodes.secret is None:
        raise ConfigError(
            f"{value.source_of('previous_secret')}: nodes.previous_secret is set, but not"
            " nodes.secret, which takes its place"
        )
    check_whole(value, NODES, certificate=nodes.certificate, key=nodes.key, ca=nodes.ca)
    if nodes.address is not None and (nodes.certificate is None or not nodes.names):
        missing = "certificate" if nodes.certificate is None else "names"
        raise ConfigError(
            f"{value.source_of('address')}: nodes.address is set, but not nodes.{missing}, without"
            " which no other node can be told from a stranger"
        )
    return nodes


def tls_table(value: Value) -> Tls:
    tls = checked_table(Tls, TLS, value)
    check_whole(value, TLS, certificate=tls.certificate, key=tls.key)
    if tls.client_ca is not None and tls.certificate is None:
        raise ConfigError(
            f"{value.source_of('client_ca')}: tls.client_ca is set, but not tls.certificate,"
            " without which clients do not use TLS"
        )
    return tls


def check_whole(value: Value, table: str, **members: object) -> None:
    """Check that of some members of a table all are set or none. Raises: ConfigError."""
    missing = [name for name, member in members.items() if member is None]
    if missing and len(missing) < len(members):
        present = next(name for name in members if name not in missing)
        raise ConfigError(
            f"{value.source_of(present)}: {table}.{present} is set, but not {table}.{missing[0]}"
        )


def auth_table(value: Value) -> Auth:
    tokens = named_tables(Token, AUTH, value, TOKENS)
    ready = {
        TOKENS: tokens,
        ISSUERS: issuers_table(value),
        CERTIFICATES: certificates_table(value),
    }
    auth = checked_table(Auth, AUTH, value, ready=ready)
    owners: dict[str, str] = {}
    for name, token in tokens.items():
        for digest in filter(None, (token.sha256, token.previous_sha256)):
            if (owner := owners.setdefault(digest, name)) != name:
                raise ConfigError(
                    f"{value.source_of(TOKENS)}: {AUTH}.{TOKENS}.{name} has the same token as"
                    f" {AUTH}.{TOKENS}.{owner}"
                )
    return auth


def auth_sources(value: Value) -> dict[str, str]:
    sources = member_sources(AUTH, Auth, value)
    for name in value.raw.get(TOKENS, {}):
        sources |= member_sources(AUTH, Token, value, within(TOKENS, name))
    for name in value.raw.get(ISSUERS, {}):
        sources |= member_sources(AUTH, Issuer, value, within(ISSUERS, name))
    for name in value.raw.get(CERTIFICATES, {}):
        sources |= member_sources(AUTH, ClientCertificates, value, within(CERTIFICATES, name))
    return sources


def certificates_table(value: Value) -> dict[str, ClientCertificates]:
    certificates = named_tables(ClientCertificates, AUTH, value, CERTIFICATES)
    owners: dict[str, str] = {}
    for name, group in certificates.items():
        path = within(CERTIFICATES, name)
        for client in group.names:
            if (owner := owners.setdefault(client, name)) != name:
                raise ConfigError(
                    f"{value.source_of(path)}: {AUTH}.{path}.names has {client}, which is in"
                    f" {AUTH}.{CERTIFICATES}.{owner} too"
                )
    return certificates


def issuers_table(value: Value) -> dict[str, Issuer]:
    issuers = named_tables(Issuer, AUTH, value, ISSUERS)
    names: dict[str, str] = {}
    for name, issuer in issuers.items():
        path = within(ISSUERS, name)
        where = f"{value.source_of(path)}: {AUTH}.{path}"
        if wrong := contradiction_of(issuer):
            raise ConfigError(f"{where}{wrong}")
        if (first := names.setdefault(issuer.issuer, name)) != name:
            raise ConfigError(f"{where}.issuer is that of {AUTH}.{ISSUERS}.{first} too")
    return issuers


def contradiction_of(issuer: Issuer) -> str | None:
    """Return what the settings of an issuer say that cannot be, as the end of an error."""
    keys = {name: getattr(issuer, name) for name in ("jwks_url", "public_key_file", "secret")}
    given = [name for name, value in keys.items() if value is not None]
    if len(given) > 1:
        return f" has both {given[0]} and {given[1]}; allowed is one of {', '.join(keys)}, or none"
    if not given and ("?" in issuer.issuer or not fits(issuer.issuer, KeysUrl)):
        return (
            f".issuer is no URL for discovery: set one of {', '.join(keys)}, or let it be"
            f" {allowed(KeysUrl)}, without a query"
        )
    if given == ["secret"] and set(issuer.allowed_algorithms) != {HMAC}:
        return f".algorithms is not allowed with a secret; allowed is {HMAC} alone"
    if given != ["secret"] and HMAC in issuer.allowed_algorithms:
        return f".algorithms has {HMAC}, which is allowed only with a secret"
    return None


def named_tables(kind: type[Table], key: str, value: Value, group: str) -> dict[str, Table]:
    """Check the tables of one kind that stand, each under its own name, in the table `group` of a
    table. An error does not repeat a value."""
    if not isinstance(value.raw, dict) or not isinstance(value.raw.get(group, {}), dict):
        raise refused_unshown(key, value.source_of(group), FORMS[key])
    named = value.raw.get(group, {})
    for name in named:
        if not fits(name, Name):
            path = within(key, group)
            raise refused_unshown(path, value.source_of(group), f"as a name {allowed(Name)}")
    return {name: checked_table(kind, key, value, within(group, name)) for name in named}


def checked_table(
    kind: type[Table],
    key: str,
    value: Value,
    inner: str = "",
    ready: Mapping[str, Any] | None = None,
) -> Table:
    """Check member by member a table whose keys are the fields of a dataclass.

    The table is the value itself, or the one at the path `inner` within it. The members in `ready`
    are checked already. An error names the place of a mistake without repeating a value that may be
    secret.
    """
    path, table = within(key, inner) if inner else key, table_at(value.raw, inner)
    ready = ready or {}
    if not isinstance(table, dict):
        raise refused_unshown(path, value.source_of(inner), FORMS[key])
    types = get_type_hints(kind, include_extras=True)
    for name, raw in table.items():
        source = value.source_of(within(inner, str(name)))
        if not fits(name, Name):
            raise refused_unshown(path, source, FORMS[key])
        check_known(name, source, f"{path}.", list(types))
        if name not in ready and not fits(listed(raw, types[name]), types[name]):
            raise refused_unshown(f"{path}.{name}", source, allowed(types[name]) or FORMS[key])
    for member in fields(kind):  # type: ignore[arg-type]
        if member.name not in table and member.default is member.default_factory is MISSING:
            form = allowed(types[member.name])
            raise ConfigError(f"{value.source}: {path}.{member.name} is missing; allowed is {form}")
    members = {
        name: msgspec.convert(listed(raw, types[name]), types[name], strict=False)
        for name, raw in table.items()
        if name not in ready
    }
    return kind(**members, **ready)


def table_at(raw: Any, path: str) -> Any:
    for name in path.split(".") if path else ():
        raw = raw[name]
    return raw


def fits(raw: Any, kind: Any) -> bool:
    """Return whether a value from a file or a variable fits a type."""
    try:
        msgspec.convert(raw, kind, strict=False)
    except msgspec.ValidationError:
        return False
    return True


def member_sources(key: str, kind: Any, value: Value, inner: str = "") -> dict[str, str]:
    """Return the source of each member of a checked table."""
    table = table_at(value.raw, inner)
    return {
        within(within(key, inner) if inner else key, member.name): (
            value.source_of(within(inner, member.name)) if member.name in table else DEFAULT
        )
        for member in fields(kind)
    }


def default_socket_path(environment: Mapping[str, str]) -> str:
    """Return the path of the admin socket in the first folder where this user may write."""
    folders = ["/run", environment.get("XDG_RUNTIME_DIR", "")]
    for folder in folders:
        if folder and os.access(folder, os.W_OK | os.X_OK):
            return str(Path(folder, "megaphone.sock"))
    return str(Path(tempfile.gettempdir(), f"megaphone-{os.getuid()}.sock"))


def new_agents(count: int) -> dict[str, AgentMode]:
    """Return MASTER agents with names that no agent has had before.

    A node that starts again must not reuse the names of its former agents, because those may have
    moved to other nodes with their channels. 16 hexadecimal digits are few enough for the names of
    services, and many enough that no two of a million names are likely to be the same.
    """
    return {secrets.token_hex(AGENT_NAME_BYTES): AgentMode.MASTER for _ in range(count)}


def check_agents_are_not_counted(sources: Mapping[str, str]) -> None:
    """Raises: ConfigError, if settings name agents and also say how many the node makes."""
    if sources[AGENT_COUNT] != DEFAULT:
        raise ConfigError(
            f"{sources[AGENT_COUNT]}: {AGENT_COUNT} is not allowed where {AGENT} is set"
            f" ({sources[AGENT]}), because the node makes agents only if no setting names one"
        )
