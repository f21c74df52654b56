"""Decodes JSON with our errors, and converts the members of a list only as they are read."""

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar, overload

import msgspec

from megaphone.errors import BadRequest, explain

T = TypeVar("T")
Source = TypeVar("Source")
Target = TypeVar("Target")


def decode_json(body: bytes, kind: type[T]) -> T:
    """Decode a request body as a value of a type.

    Raises: BadRequest, if the body is not JSON in UTF-8, is nested too deep, or does not have the
        form of that type.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except UnicodeDecodeError:
        raise BadRequest("the body is not valid UTF-8") from None
    except RecursionError:
        raise BadRequest("the body is nested too deep") from None
    except msgspec.ValidationError as error:
        raise BadRequest(f"the body does not fit: {explain(error)}") from None
    except msgspec.DecodeError as error:
        raise BadRequest(f"the body is not JSON: {explain(error)}") from None


class Converted(Sequence[Target], Generic[Source, Target]):
    """A sequence that converts a member each time the member is read.

    A request may have a hundred thousand members. To convert all of them at once would hold the
    event loop, and would be wasted on a request that is refused for their number.
    """

    __slots__ = ("_convert", "_members")

    def __init__(self, members: Sequence[Source], convert: Callable[[Source], Target]) -> None:
        self._members = members
        self._convert = convert

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Target]:
        return map(self._convert, self._members)

    @overload
    def __getitem__(self, index: int) -> Target: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Target]: ...
    def __getitem__(self, index: int | slice) -> Target | Sequence[Target]:
        if isinstance(index, slice):
            return Converted(self._members[index], self._convert)
        return self._convert(self._members[index])
