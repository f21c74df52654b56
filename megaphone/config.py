"""Reads the settings: defaults, then one file, then the environment. Nothing else does.

The file is `megaphone.toml`, `.yaml` or `.json` in the working directory. Variables are named
`megaphone_KEY`, or the same in upper case, with dots for what is nested, such as
`megaphone_agent.virtual.node1=MASTER`. Whatever is wrong ends in a `ConfigError`, which says in one
line where it stands, what it is (but for what may be secret), and what is allowed.
"""

import json
import os
import re
import secrets
import socket
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec
import yaml

from megaphone.model import MAX_NAME_LENGTH, AgentMode
from megaphone.process import memory
from megaphone.settings import Name, Nodes, Settings, Webhook

PREFIX = "megaphone_"
FILE_NAMES = ("megaphone.toml", "megaphone.yaml", "megaphone.yml", "megaphone.json")
AGENT = "agent"
WEBHOOKS = "webhooks"
NODES = "nodes"
CONFIGURABLE_MODES = (AgentMode.MASTER.value, AgentMode.REPLICA.value)
"""The modes an agent may start in; PIPED needs a target, which a command names."""
FORMS = {
    AGENT: 'a name, or a table such as agent.virtual.node1 = "MASTER"',
    WEBHOOKS: 'tables such as webhooks.name = {hook = "on-channel-deleted", endpoint = URL}',
    NODES: "a table such as nodes = {secret = TEXT, open = false}",
}
"""What is allowed for keys with more than one value."""
DEFAULT = "default"
VARIABLE = "variable "
"""What the source of a value begins with that comes from the environment."""
SOCKET = "mng_socket_path"
WARMUP = "agent_warmup_secs"
BUFFERED = "max_buffered_bytes"

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
    """A setting that cannot be taken. One line, for the operator."""


@dataclass(frozen=True, slots=True)
class Config:
    """The settings of this node, and where each comes from."""

    settings: Settings
    sources: Mapping[str, str] = field(default_factory=dict)
    """By key: the name of a file or of a variable, or `default`. The parts of `nodes` and of a
    webhook have keys of their own too, such as `webhooks.audit.endpoint`."""


@dataclass(slots=True)
class Value:
    """What the sources say about one key, as it stands there."""

    raw: Any
    source: str
    parts: Mapping[str, str] = field(default_factory=dict)
    """Where parts of a table come from, by their dotted paths, once sources are joined."""

    def source_of(self, path: str) -> str:
        return self.parts.get(path, self.source)


def load(directory: Path, environment: Mapping[str, str], file: Path | None = None) -> Config:
    """Read `file`, or the one in `directory` if there is one, and then the environment.

    Raises: ConfigError.
    """
    values: dict[str, Value] = {}
    chosen = file or find_file(directory)
    if chosen is not None:
        values |= read_file(chosen)
    for key, value in read_environment(environment).items():
        values[key] = laid_over(values.get(key), value)
    return build(values, environment)


def load_here(file: Path | None = None) -> Config:
    """Read the configuration of this process. Raises: ConfigError."""
    return load(Path.cwd(), os.environ, file)


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
        raise ConfigError(f"{file.name}: is not {file.suffix[1:].upper()}: {why(error)}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{file.name}: must hold keys with values at its top")
    for key in content:
        check_known(str(key), file.name)
    return {key: Value(raw, file.name) for key, raw in content.items()}


def read_environment(environment: Mapping[str, str]) -> dict[str, Value]:
    """Return what variables with our prefix say.

    In upper case, variables with other names are passed over: Kubernetes makes such for a service
    that is called megaphone.
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
        if key == NODES:  # others have names in their paths, whose case counts
            path = [part.lower() for part in path]
        values[key] = laid_over(values.get(key), Value(nested(path, text), f"{VARIABLE}{name}"))
    return values


def why(error: Exception) -> str:
    """Say in one line why a file cannot be read, without a line of it: it may hold a secret."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        # Names that the file made up are quoted here; a secret without quotes may look like one.
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


def laid_over(below: Value | None, above: Value) -> Value:
    """Lay what one source says over what those before it say."""
    if below is None:
        return above
    parts = {path: value.source_of(path) for value in (below, above) for path in leaves(value.raw)}
    return Value(merged(below.raw, above.raw), above.source, parts)


def leaves(raw: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted path of everything in a table that is not a table."""
    if isinstance(raw, dict):
        for name, value in raw.items():
            yield from leaves(value, within(prefix, str(name)))
    else:
        yield prefix


def within(path: str, name: str) -> str:
    """Return the dotted path of what has a name in the table at a path."""
    return f"{path}.{name}" if path else name


def merged(below: Any, above: Any) -> Any:
    """Lay one source over another: tables are joined, all else is replaced."""
    if isinstance(below, dict) and isinstance(above, dict):
        return below | {key: merged(below.get(key), value) for key, value in above.items()}
    return above


# -- Values


def build(values: Mapping[str, Value], environment: Mapping[str, str]) -> Config:
    checked = {key: convert(key, value) for key, value in values.items()}
    sources = {key: values[key].source if key in values else DEFAULT for key in KEYS}
    if WEBHOOKS in values:
        for name in checked[WEBHOOKS]:
            sources |= part_sources(WEBHOOKS, Webhook, values[WEBHOOKS], name)
    sources |= part_sources(NODES, Nodes, values.get(NODES, Value({}, DEFAULT)))
    if not checked.get(AGENT):
        checked[AGENT] = {new_agent_name(): AgentMode.MASTER}
        checked.setdefault(WARMUP, 0.0)
    checked.setdefault(SOCKET, default_socket_path(environment))
    checked.setdefault(BUFFERED, memory.allowed_bytes() // 2)
    return Config(Settings(**checked), sources)


def convert(key: str, value: Value) -> Any:
    if key == WEBHOOKS:
        return webhooks_table(value)
    if key == NODES:
        return nodes_table(value)
    raw = agents_table(value) if key == AGENT else value.raw
    try:
        return msgspec.convert(raw, TYPES[key], strict=False)
    except msgspec.ValidationError as error:
        raise refused(key, value, allowed(TYPES[key]) or str(error)) from None


def refused(key: str, value: Value, what_is_allowed: str) -> ConfigError:
    return not_allowed(value.source, key, json.dumps(value.raw, default=str), what_is_allowed)


def refused_unshown(key: str, source: str, what_is_allowed: str) -> ConfigError:
    """Refuse a value that may be secret, or hold a secret."""
    return not_allowed(source, key, "…", what_is_allowed)


def not_allowed(source: str, key: str, shown: str, what_is_allowed: str) -> ConfigError:
    return ConfigError(f"{source}: {key} = {shown} is not allowed; allowed is {what_is_allowed}")


def allowed(kind: Any) -> str | None:
    """Say which values a type allows."""
    if kind is bool:
        return "true or false"
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(get_args(kind))
    for note in getattr(kind, "__metadata__", ()):
        if isinstance(note, msgspec.Meta) and note.description:
            return note.description
    if get_origin(kind) is Union:  # a kind or None, which stands for "not set"
        return allowed(get_args(kind)[0])
    return None


def agents_table(value: Value) -> dict[str, str]:
    """Bring the forms of the key `agent` to one: a table of names and modes."""
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
    """Check the tables of webhooks, piece by piece.

    So a message can say where the mistake is without repeating what may be secret.
    """
    if not isinstance(value.raw, dict):
        raise refused_unshown(WEBHOOKS, value.source, FORMS[WEBHOOKS])
    names = get_args(TYPES[WEBHOOKS])[0]
    for name in value.raw:
        if not fits(name, names):
            raise refused_unshown(WEBHOOKS, value.source, f"as a name {allowed(names)}")
    return {name: checked_table(Webhook, WEBHOOKS, value, name) for name in value.raw}


def nodes_table(value: Value) -> Nodes:
    nodes = checked_table(Nodes, NODES, value)
    if nodes.previous_secret is not None and nodes.secret is None:
        raise ConfigError(
            f"{value.source_of('previous_secret')}: nodes.previous_secret is set, but not"
            " nodes.secret, which takes its place"
        )
    return nodes


def checked_table(kind: type[Table], key: str, value: Value, inner: str = "") -> Table:
    """Check a table whose keys are the fields of a dataclass, piece by piece.

    It is the one at the path `inner` of a value, or the value itself. A message says where the
    mistake is without repeating what may be secret.
    """
    path, table = within(key, inner) if inner else key, value.raw
    if inner:
        table = table[inner]
    if not isinstance(table, dict):
        raise refused_unshown(path, value.source_of(inner), FORMS[key])
    types = get_type_hints(kind, include_extras=True)
    for name, raw in table.items():
        source = value.source_of(within(inner, str(name)))
        if not fits(name, Name):
            raise refused_unshown(path, source, FORMS[key])
        check_known(name, source, f"{path}.", list(types))
        if not fits(raw, types[name]):
            raise refused_unshown(f"{path}.{name}", source, allowed(types[name]) or FORMS[key])
    for part in fields(kind):  # type: ignore[arg-type]
        if part.name not in table and part.default is part.default_factory is MISSING:
            what = allowed(types[part.name])
            raise ConfigError(f"{value.source}: {path}.{part.name} is missing; allowed is {what}")
    return msgspec.convert(table, kind, strict=False)


def fits(raw: Any, kind: Any) -> bool:
    """Tell whether a value, as it stands in a file or a variable, is one of a type."""
    try:
        msgspec.convert(raw, kind, strict=False)
    except msgspec.ValidationError:
        return False
    return True


def part_sources(key: str, kind: Any, value: Value, inner: str = "") -> dict[str, str]:
    """Return where each part of a table that was checked comes from."""
    table = value.raw[inner] if inner else value.raw
    return {
        within(within(key, inner) if inner else key, part.name): (
            value.source_of(within(inner, part.name)) if part.name in table else DEFAULT
        )
        for part in fields(kind)
    }


def default_socket_path(environment: Mapping[str, str]) -> str:
    """Return the first place for the management socket where this user may write."""
    folders = ["/run", environment.get("XDG_RUNTIME_DIR", "")]
    for folder in folders:
        if folder and os.access(folder, os.W_OK | os.X_OK):
            return str(Path(folder, "megaphone.sock"))
    return str(Path(tempfile.gettempdir(), f"megaphone-{os.getuid()}.sock"))


def new_agent_name() -> str:
    """Return a name for an agent that no other has: that of the host, and something random.

    A node that starts again on its host must not take the name of the agent that it had before,
    since that may have moved to another node with its channels.
    """
    host = re.sub(r"[^A-Za-z0-9_-]+", "-", socket.gethostname()).strip("-") or "megaphone"
    suffix = secrets.token_hex(3)
    return f"{host[: MAX_NAME_LENGTH - len(suffix) - 1]}-{suffix}"
