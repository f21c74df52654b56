"""Who calls, and what that caller may do. Both faces find the proof of a caller in their own way;
everything else about it is decided here.

An action that the settings do not require a proof for is open to everybody. So a token cannot take
away what its owner could do without it.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple, final

from megaphone.core.tenants import DEFAULT, Tenant
from megaphone.errors import PermissionDenied, TokenExpired, Unauthenticated
from megaphone.model import Action

__all__ = ["ANYONE", "Action", "Caller", "Grant", "Peer"]

STREAMS_REMEMBERED: Final = 1_000
"""For how many stream ids a caller remembers whether it may use them."""
Patterns = tuple[str, ...]
EVERY_STREAM: Final[Patterns] = ("*",)
DOING: Final = {
    Action.CREATE: "creating a channel",
    Action.WRITE: "writing",
    Action.READ: "reading",
    Action.ACK: "acknowledging",
    Action.EXISTS: "asking whether channels exist",
    Action.DISPOSE: "disposing of a channel",
    Action.METRICS: "reading the metrics",
}
MAY_NOT: Final = {
    Action.CREATE: "create channels",
    Action.WRITE: "write",
    Action.READ: "read",
    Action.ACK: "acknowledge events",
    Action.EXISTS: "ask whether channels exist",
    Action.DISPOSE: "dispose of channels",
    Action.METRICS: "read the metrics",
}
OF_STREAMS: Final = {Action.WRITE: "write to", Action.READ: "read"}


class Peer(NamedTuple):
    """Who is at the other end of a connection."""

    ip: str
    """The IP address; empty for a Unix socket."""
    certificate_names: tuple[str, ...] = ()
    """The names in the client certificate, which the transport has checked."""


class Grant(NamedTuple):
    """Some actions, on some streams."""

    actions: frozenset[Action]
    streams: Patterns = EVERY_STREAM
    """Names of streams, or their beginnings followed by `*`. They limit only WRITE and READ."""


@final
class Caller:
    """Somebody who calls, with what its credential grants. All calls and reads with the same
    credential share one object. A reload of the settings may change what it may do.
    """

    __slots__ = (
        "__weakref__",
        "_grants",
        "_has_proof",
        "_is_revoked",
        "_known_streams",
        "_streams",
        "expires_at",
        "name",
        "tenant",
    )

    def __init__(
        self,
        name: str,
        tenant: Tenant,
        grants: Sequence[Grant] = (),
        *,
        required: Iterable[Action] = (),
        expires_at: float = math.inf,
        has_proof: bool = True,
    ) -> None:
        """`required` are the actions for which the node requires a proof."""
        self.name: Final = name
        """For logs: "anyone", "token shop" or the like; never a secret."""
        self.tenant: Final = tenant
        self.expires_at: Final = expires_at
        """When the credential expires, in the time of the event loop; infinite if it does not."""
        self._has_proof: Final = has_proof
        self._is_revoked = False
        self._grants: Sequence[Grant] = ()
        self._streams: dict[Action, Patterns] = {}
        """By each action that the caller may do: on which streams. Other actions than those of
        `OF_STREAMS` have all streams."""
        self._known_streams: dict[tuple[Action, str], bool] = {}
        self.change(grants, required)

    def change(self, grants: Sequence[Grant], required: Iterable[Action]) -> None:
        """Let the caller do these things from now on, and what needs no proof."""
        self._grants = grants
        self.require(required)

    def require(self, required: Iterable[Action]) -> None:
        """Let everything but these actions need no proof from now on."""
        streams = dict.fromkeys(frozenset(Action).difference(required), EVERY_STREAM)
        for grant in self._grants:
            for action in grant.actions:
                patterns = grant.streams if action in OF_STREAMS else EVERY_STREAM
                streams[action] = streams.get(action, ()) + patterns
        self._streams = {
            action: EVERY_STREAM if "*" in patterns else patterns
            for action, patterns in streams.items()
        }
        self._known_streams = {}

    def revoke(self) -> None:
        """Let the caller do nothing from now on."""
        self._is_revoked = True
        self._grants = ()
        self._streams = {}

    def check(self, action: Action, now: float, stream_id: str | None = None) -> None:
        """Check whether the caller may do something; without `stream_id`, whether it may do it to
        any stream at all. `now` is the time of the event loop.

        Raises: TokenExpired; Unauthenticated, if the action requires a proof and the caller has
            none, or if its credential was revoked; PermissionDenied.
        """
        if now >= self.expires_at:
            raise TokenExpired
        streams = self._streams.get(action)
        if streams is None:
            self._refuse(action)
        elif stream_id is not None and streams is not EVERY_STREAM:
            self._check_stream(action, stream_id, streams)

    def check_streams(self, action: Action, now: float, stream_ids: Iterable[str] | None) -> None:
        """Do the same as `check` for several streams; None stands for all streams."""
        self.check(action, now)
        if (streams := self._streams[action]) is EVERY_STREAM:
            return
        if stream_ids is None:
            allowed = ", ".join(streams)
            raise PermissionDenied(
                f"this token may {OF_STREAMS[action]} only some streams; allowed are {allowed}",
                action=action.value,
            )
        for stream_id in stream_ids:
            self._check_stream(action, stream_id, streams)

    def _refuse(self, action: Action) -> None:
        if self._is_revoked:
            raise Unauthenticated("the token is not valid here", was_presented=True)
        if not self._has_proof:
            raise Unauthenticated(f"{DOING[action]} needs a token: send `Authorization: Bearer …`")
        raise PermissionDenied(f"this token may not {MAY_NOT[action]}", action=action.value)

    def _check_stream(self, action: Action, stream_id: str, streams: Patterns) -> None:
        known = self._known_streams
        allowed = known.get((action, stream_id))
        if allowed is None:
            if len(known) >= STREAMS_REMEMBERED:
                known.clear()
            allowed = any(fits(stream_id, pattern) for pattern in streams)
            known[action, stream_id] = allowed
        if not allowed:
            raise PermissionDenied(
                f"this token may not {OF_STREAMS[action]} this stream", action=action.value
            )


def fits(stream_id: str, pattern: str) -> bool:
    """Return whether a pattern of a grant allows a stream."""
    if pattern.endswith("*"):
        return stream_id.startswith(pattern[:-1])
    return stream_id == pattern


ANYONE: Final = Caller("anyone", DEFAULT, has_proof=False)
"""The caller of every call on a node that requires no proof of anybody."""
