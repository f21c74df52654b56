"""Prints what an operator may see of a channel."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from megaphone.cli.rendering import printable

if TYPE_CHECKING:
    from megaphone.wire.bodies import ChannelInfo, ReaderOfChannel

COLUMNS: Final = (
    "ID",
    "AGENT",
    "TENANT",
    "LABEL",
    "AGE",
    "UNSENT",
    "IN FLIGHT",
    "BYTES",
    "WAITING",
    "FOR",
    "READ",
    "ADDRESS",
)
NAMES_OF_FACES: Final = {"http": "HTTP", "grpc": "gRPC"}
NOTHING: Final = "-"


def row(channel: "ChannelInfo") -> Sequence[object]:
    """Return the cells of a channel in a table."""
    return (
        channel.id,
        channel.agent_id,
        channel.tenant,
        channel.label or NOTHING,
        age(channel.age_s),
        channel.unsent,
        channel.in_flight,
        NOTHING if channel.bytes is None else channel.bytes,
        channel.waiting_writers,
        NOTHING if channel.waiting_s is None else age(channel.waiting_s),
        NOTHING if channel.reader is None else channel.reader.face or "yes",
        channel.address,
    )


def lines(channel: "ChannelInfo") -> list[str]:
    """Return a line for each thing that there is to say of a channel."""
    said = {
        "address": channel.address,
        "id": channel.id,
        "agent": channel.agent_id,
        "tenant": channel.tenant,
        "label": channel.label or NOTHING,
        "age": age(channel.age_s),
        "expires in": expiry(channel),
        "unsent": f"{channel.unsent:,}",
        "in flight": f"{channel.in_flight:,}",
        "kept": f"{channel.kept:,}",
        "capacity": f"{channel.capacity:,}",
        "bytes": "unknown" if channel.bytes is None else f"{channel.bytes:,}",
        "waiting writers": waiting(channel),
        "last write": ago(channel.written_s),
        "last read": "now" if channel.reader is not None else ago(channel.read_s),
        "reader": NOTHING if channel.reader is None else described(channel.reader),
    }
    wide = max(map(len, said))
    return [f"{name.ljust(wide)}  {printable(text)}" for name, text in said.items()]


def expiry(channel: "ChannelInfo") -> str:
    if channel.expires_s is not None:
        return age(channel.expires_s)
    ttl = f"{age(channel.ttl_s)} after the end of its read"
    return ttl if channel.reader is not None else "not while its agent is replicated"


def waiting(channel: "ChannelInfo") -> str:
    first = "" if channel.waiting_s is None else f", the first for {age(channel.waiting_s)}"
    return f"{channel.waiting_writers:,}{first}"


def described(reader: "ReaderOfChannel") -> str:
    said = [reader.kind]
    if reader.face is not None:
        said.append(f"over {NAMES_OF_FACES.get(reader.face, reader.face)}")
    if reader.name:
        said.append(f"named {reader.name}")
    if reader.age_s is not None:
        said.append(f"for {age(reader.age_s)}")
        said.append(
            "has taken nothing"
            if reader.taken_s is None
            else f"took events {age(reader.taken_s)} ago"
        )
    if reader.node is not None:
        said.append(f"on the node {reader.node}")
    return ", ".join(said)


def ago(seconds: float | None) -> str:
    return NOTHING if seconds is None else f"{age(seconds)} ago"


def age(seconds: float) -> str:
    """Return a length of time in a few characters."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}m{rest:02}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02}m"
