"""Channels that have a name: `@NAME` may stand wherever a command takes an address.

Their addresses are secrets, so only the user may read the file.
"""

from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from megaphone.cli.exits import Exit, leave, say
from megaphone.cli.files import check_replaceable, replace_file, state_file

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


def check() -> None:
    """Exit if it is certain that no channel can be saved."""
    load()
    try:
        check_replaceable(state_file(FILE))
    except OSError as error:
        leave(Exit.WRONG_USAGE, not_written(error))


def save(name: str, channel: Saved) -> None:
    """Give a channel a name, which another one may have had. Exits if that cannot be stored."""
    try:
        store(load() | {name: channel})
    except OSError as error:
        leave(Exit.FAILED, not_written(error))


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


def hint_for_a_new_one(addresses: Sequence[str]) -> str:
    """Return what to say of the name of a channel that has gone; nothing if there is no name."""
    if len(addresses) != 1 or not addresses[0].startswith(MARK):
        return ""
    return f"; `megaphone create --save {addresses[0].removeprefix(MARK)}` makes a new one"


def forget(name: str, url: str, context: str | None) -> None:
    """Forget a channel that its user has disposed of at its own broker, if it was named so.

    Another broker, which a flag has named, cannot know the channel.
    """
    channels = load()
    plain = name.removeprefix(MARK)
    channel = channels.get(plain) if name.startswith(MARK) else None
    if channel is None:
        return
    is_home = context == channel.context if channel.context else url == channel.url
    if not is_home:
        return
    del channels[plain]
    try:
        store(channels)
    except OSError as error:
        say(f"megaphone: {name} is not forgotten: {not_written(error)}")
        return
    say(f"megaphone: {name} is forgotten")


def not_written(error: OSError) -> str:
    return f"{state_file(FILE)} cannot be written: {error.strerror}"


def store(channels: dict[str, Saved]) -> None:
    replace_file(state_file(FILE), msgspec.json.format(msgspec.json.encode(channels)).decode())


def names(incomplete: str) -> list[str]:
    """Return the names that begin so, for the completion of a shell."""
    return [f"@{name}" for name in load() if f"@{name}".startswith(incomplete)]
