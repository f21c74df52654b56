"""Sequences of the model that are made from those of a request only as they are used."""

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar, overload

Source = TypeVar("Source")
Target = TypeVar("Target")


class Converted(Sequence[Target], Generic[Source, Target]):
    """A sequence whose members are converted each time they are taken.

    A request may have a hundred thousand members: converting all of them at once would hold the
    event loop, and is in vain if the request is refused for their number.
    """

    __slots__ = ("_convert", "_members")

    def __init__(self, members: Sequence[Source], convert: Callable[[Source], Target]) -> None:
        self._members = members
        self._convert = convert

    def __len__(self) -> int:
        return len(self._members)

    @overload
    def __getitem__(self, index: int) -> Target: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Target]: ...
    def __getitem__(self, index: int | slice) -> Target | Sequence[Target]:
        if isinstance(index, slice):
            return Converted(self._members[index], self._convert)
        return self._convert(self._members[index])
