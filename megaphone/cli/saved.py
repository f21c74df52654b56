"""Channels that have a name: `@NAME` may stand wherever a command takes an address.

Their addresses are secrets, so only the user may read the file.
"""

from typing import Final, Literal

import msgspec

from megaphone.cli.exits import Exit, leave, say
from megaphone.cli.files import replace_file, state_file

FILE: Final = "channels.json"
MARK: Final = "@"
Side = Literal["producer", "consumer"]


class Saved(msgspec.Struct):
    """A channel that has a name, and the broker where it is."""

    producer: str
    consumer: str
    url: str | None = None
    context: str | None = None

    def __repr__(self) -> str:
        return "<Saved channel>"


def load() -> dict[str, Saved]:
    """Return the channels by name. Exits if their file is not as it must be."""
    path = state_file(FILE)
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Saved])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.DecodeError):
        leave(Exit.WRONG_USAGE, f"{path} cannot be read; remove it, and its names are free again")


def save(name: str, channel: Saved) -> None:
    """Give a channel a name, which another one may have had."""
    store(load() | {name: channel})


def find(name: str) -> Saved:
    """Return the channel of `@NAME`. Exits if there is none."""
    channels = load()
    plain = name.removeprefix(MARK)
    if plain not in channels:
        known = ", ".join(f"@{one}" for one in channels) or "none"
        leave(Exit.WRONG_USAGE, f"no channel is saved as {name}; there is {known}")
    return channels[plain]


def address(text: str, side: Side) -> str:
    """Return the address that is meant: one side of the channel of `@NAME`, or the text itself."""
    if not text.startswith(MARK):
        return text
    channel = find(text)
    return channel.producer if side == "producer" else channel.consumer


def drop(name: str, url: str, context: str | None) -> None:
    """Forget a channel that its own broker does not know any more, if it was named so.

    Another broker, which a flag has named, cannot know the channel.
    """
    channels = load()
    plain = name.removeprefix(MARK)
    channel = channels.get(plain) if name.startswith(MARK) else None
    if channel is None:
        return
    is_home = context == channel.context if channel.context else url == channel.url
    if is_home:
        del channels[plain]
        store(channels)
        say(
            f"megaphone: {name} is forgotten, because the channel has gone;"
            f" `megaphone create --save {plain}` makes a new one"
        )


def store(channels: dict[str, Saved]) -> None:
    replace_file(state_file(FILE), msgspec.json.format(msgspec.json.encode(channels)).decode())


def names(incomplete: str) -> list[str]:
    """Return the names that begin so, for the completion of a shell."""
    return [f"@{name}" for name in load() if f"@{name}".startswith(incomplete)]
