"""A mapping that grows without long pauses."""

from typing import Final, Generic, TypeVar

V = TypeVar("V")

PARTS: Final = 32


class Parts(Generic[V]):
    """A mapping from channel ids to values that consists of several dicts.

    A dict that grows beyond its table copies all its entries at once. With 100,000 entries this
    takes milliseconds; in a smaller dict the pause is shorter.
    """

    __slots__ = ("_count", "_parts")

    def __init__(self) -> None:
        self._count = 0
        self._parts: tuple[dict[bytes, V], ...] = tuple({} for _ in range(PARTS))

    def __len__(self) -> int:
        return self._count

    def get(self, channel_id: bytes) -> V | None:
        return self._parts[channel_id[-1] % PARTS].get(channel_id)

    def __setitem__(self, channel_id: bytes, value: V) -> None:
        part = self._parts[channel_id[-1] % PARTS]
        before = len(part)
        part[channel_id] = value
        self._count += len(part) - before

    def pop(self, channel_id: bytes) -> V | None:
        """Remove an entry and return it; None if there is none."""
        value = self._parts[channel_id[-1] % PARTS].pop(channel_id, None)
        if value is not None:
            self._count -= 1
        return value

    def popitem(self) -> tuple[bytes, V]:
        """Remove any entry and return it. Raises: KeyError, when there is none."""
        item = next(filter(None, self._parts), {}).popitem()
        self._count -= 1
        return item
