"""The errors between this node and the store, with more detail than clients get.

    megaphone.errors.StoreUnavailable
     ├── NoAnswer          there is none, or this node did not even ask
     └── NotServing        the store answered: it did nothing, because it cannot serve now
          ├── NoReplicas, ReadOnly, Loading, MasterDown, ClusterDown, Misconfigured, ScriptBusy
          └── TryAgain     keys of the call are on their way to another master
    megaphone.errors.LimitExceeded
     └── OutOfMemory       the store is full: it did nothing
    ReplyError             the store refused the call, and repeating it changes nothing
     ├── FunctionMissing   it did nothing, because it lacks a function or a script: load it, repeat
     ├── NoPermission      the user of the store may not do this
     └── Redirected        another master has the slot: only a link to one master gives this

A client may get any error below StoreUnavailable or LimitExceeded as it is.
"""

from megaphone.errors import LimitExceeded, MegaphoneError, StoreUnavailable
from megaphone.store.errors import UnusableStore as UnusableStore


class NoAnswer(StoreUnavailable):
    """There is no answer of the store: it was not asked, or what it said is lost."""

    UNREACHABLE = "unreachable"
    """There was no connection in time."""
    BUSY = "busy"
    """Too many calls wait on this node."""
    BROKEN = "broken"
    """The connection ended before the answer."""
    LATE = "late"
    """The answer did not come in time."""
    UNHANDLED = "unhandled"
    """A bug: this node could not handle the answer."""
    KINDS = (UNREACHABLE, BUSY, BROKEN, LATE, UNHANDLED)

    def __init__(self, message: str, *, kind: str | None, may_have_happened: bool = False) -> None:
        super().__init__(message, may_have_happened=may_have_happened)
        self.kind = kind
        """One of `KINDS`; None if this node has closed its store."""


class NotServing(StoreUnavailable):
    """The store did not carry the call out, and cannot serve now. Repeating it may succeed."""

    def __init__(self, text: str) -> None:
        super().__init__(f"the store of channels cannot serve now: {text}")


class NoReplicas(NotServing):
    """Fewer replicas than `min-replicas-to-write` are there."""


class ReadOnly(NotServing):
    """The server is a replica, perhaps since a moment ago. The link connects anew."""


class Loading(NotServing):
    """The server has started and still reads its data."""


class MasterDown(NotServing):
    """The server is a replica without its master."""


class ClusterDown(NotServing):
    """The cluster lacks slots."""


class Misconfigured(NotServing):
    """The server cannot write to its disk, and so accepts no writes."""


class ScriptBusy(NotServing):
    """The server is in a script or function that takes too long."""


class TryAgain(NotServing):
    """The slot of the call moves to another master."""


class OutOfMemory(LimitExceeded):
    """The store is full. Calls that free memory still work."""

    def __init__(self, _text: str = "") -> None:
        super().__init__("the store of channels has no memory left")


class ReplyError(Exception):
    """An error that the store answers, and that has no class of its own below."""


FAILURES = (MegaphoneError, ReplyError)
"""With these a call fails. Work that must be done in the end is tried again after any of them: an
operator can mend what the store refuses."""


class FunctionMissing(ReplyError):
    """The store lacks the function or script, and did nothing. It is to be loaded."""


class NoPermission(ReplyError):
    """The user, or a connection without a user, may not do this. Within a function, what the
    function did before has happened."""


class Redirected(ReplyError):
    """Another master of the cluster has the slot: MOVED for ever, ASK only for this call."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        word, _, self.address = text.rpartition(" ")
        self.is_for_ever = word.startswith("MOVED")


BY_WORD: dict[str, type[NotServing | OutOfMemory | ReplyError]] = {
    "NOREPLICAS": NoReplicas,
    "READONLY": ReadOnly,
    "LOADING": Loading,
    "MASTERDOWN": MasterDown,
    "CLUSTERDOWN": ClusterDown,
    "MISCONF": Misconfigured,
    "BUSY": ScriptBusy,
    "TRYAGAIN": TryAgain,
    "OOM": OutOfMemory,
    "NOSCRIPT": FunctionMissing,
    "NOPERM": NoPermission,
    "NOAUTH": NoPermission,
    "WRONGPASS": NoPermission,
    "MOVED": Redirected,
    "ASK": Redirected,
}
"""The classes of errors by the first word of the answer. An error within a script or function has
the word too."""
BY_BEGINNING: dict[str, type[ReplyError]] = {
    "ERR Function not found": FunctionMissing,
    "ERR ACL failure in script": NoPermission,
    "ERR The user executing the script can't run": NoPermission,
}
"""The classes of errors that have no word of their own."""


def error_of(text: str) -> Exception:
    """Return the exception for an error that the store answered."""
    word = text.partition(" ")[0]
    if word == "ERR":
        for beginning, kind in BY_BEGINNING.items():
            if text.startswith(beginning):
                return kind(text)
    return BY_WORD.get(word, ReplyError)(text)
