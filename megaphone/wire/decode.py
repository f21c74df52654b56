"""Decodes JSON with our errors, and converts the members of a list only as they are read."""

import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar, overload

import msgspec
import msgspec.inspect

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
        reason = "the body is not valid UTF-8"
    except RecursionError:
        reason = "the body is nested too deep"
    except msgspec.ValidationError as error:
        reason = f"the body does not fit: {misfit(error, body, kind)}"
    except msgspec.DecodeError as error:
        reason = f"the body is not JSON: {explain(error)}"
    # Raised here, so that the error of the decoder, which repeats text of the body, is no context.
    raise BadRequest(reason)


# -- Bodies that do not fit


NOT_ALLOWED = "Invalid enum value "


def misfit(error: msgspec.ValidationError, body: bytes, kind: type[Any]) -> str:
    """Return in our words what the decoder has found wrong in a body for a type, without values of
    the body, which may be long or secret."""
    found = str(error)
    if found.startswith(UNKNOWN):
        return f"it has {unknown_member(found, body, kind)}"
    if found.startswith(NOT_ALLOWED):
        return f"a value is none of those that are allowed - at `${found.rpartition(PATH)[2]}"
    return explain(error)


# -- Names that are not known


LONGEST_NAME = 40
"""A longer name is not repeated, because it may be a secret. Nor is it compared with the known
ones: it is no misspelling, and a name of a megabyte would hold the event loop."""
UNKNOWN = "Object contains unknown field `"
PATH = " - at `$"
"""Begins the path of an object, which the decoder writes last. Without one it means the top."""
AT = f"`{PATH}"
LIKE_AT = (AT.encode(), *(rb"\u%04x" % ord(one) for one in sorted({*AT})), rb"\u002D")
"""One of them is in each body that has a name with the text `AT`: as it is, or partly escaped."""
STEP = re.compile(r"\.(\w+)|\[")


def unknown_member(found: str, body: bytes, kind: type[Any]) -> str:
    """Return in our words which unknown member a body has, as the decoder has found it for a type
    of the body."""
    name, at, path = found.removeprefix(UNKNOWN).removesuffix("`").partition(AT)
    if at and any(like in body for like in LIKE_AT):
        return "an unknown member"  # the path may be part of the name
    return unknown("member", name, members_at(msgspec.inspect.type_info(kind), path))


def members_at(kind: msgspec.inspect.Type, path: str) -> list[str]:
    """Return the names of the members of the object that stands at a path within a type."""
    for step in STEP.finditer(path):
        if isinstance(kind, msgspec.inspect.ListType):
            kind = bare(kind.item_type)
        else:
            assert isinstance(kind, msgspec.inspect.StructType)
            kind = bare(next(one.type for one in kind.fields if one.encode_name == step[1]))
    assert isinstance(kind, msgspec.inspect.StructType)
    return [one.encode_name for one in kind.fields]


def bare(kind: msgspec.inspect.Type) -> msgspec.inspect.Type:
    """Return a type without its description, and without None."""
    if isinstance(kind, msgspec.inspect.Metadata):
        return bare(kind.type)
    if isinstance(kind, msgspec.inspect.UnionType):
        return next(one for one in kind.types if not isinstance(one, msgspec.inspect.NoneType))
    return kind


def unknown(what: str, name: str, known: Sequence[str]) -> str:
    """Return the second half of a sentence about a name that is not known, with all known names,
    and with the one that was probably meant if the name is short enough to be a misspelling."""
    is_short = len(name) <= LONGEST_NAME
    said = f"the unknown {what} `{name}`" if is_short else f"an unknown {what}"
    if not known:
        return f"{said}; no {what} is allowed here"
    meant = difflib.get_close_matches(name, known, n=1) if is_short else []
    listed = f"allowed are {', '.join(f'`{one}`' for one in known)}"
    return f"{said}, did you mean `{meant[0]}`? {listed}" if meant else f"{said}; {listed}"


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
