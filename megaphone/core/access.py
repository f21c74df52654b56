"""Callers, and the actions that each of them may do. Each face finds the proof of a caller in its
own way; this module decides everything else.

If the settings require no proof for an action, everybody may do it, on every channel. So a token
cannot take away what its owner could do without it. If the settings require a proof, a caller can
do the action only to the channels of its own tenant: all other channels do not exist for it.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple, final

from megaphone.core.tenants import DEFAULT, Tenant
from megaphone.errors import MegaphoneError, PermissionDenied, TokenExpired, Unauthenticated
from megaphone.model import Action

__all__ = ["ANYONE", "Action", "Caller", "Grant", "Names", "Peer"]

STREAMS_REMEMBERED: Final = 1_000
"""How many stream ids that it may use a caller remembers for each action."""
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


Names = tuple[str, ...]
"""The names in a client certificate, which the transport has checked."""


class Peer(NamedTuple):
    """Who is at the other end of a connection."""

    ip: str
    """The IP address; empty for a Unix socket."""
    certificate_names: Names = ()


class Grant(NamedTuple):
    """Some actions, on some streams."""

    actions: frozenset[Action]
    streams: Patterns = EVERY_STREAM
    """Names of streams, or their beginnings followed by `*`. They limit only WRITE and READ."""


@final
class Right:
    """On which channels and streams a caller may do an action."""

    __slots__ = ("known", "streams", "tenant")

    def __init__(self, streams: Patterns = EVERY_STREAM, tenant: Tenant | None = None) -> None:
        self.streams = streams
        self.tenant = tenant
        """The tenant to whose channels the action is limited; None if it may be any channel."""
        self.known: set[str] | None = None if streams is EVERY_STREAM else set()
        """Streams that fit `streams`; None if all do."""


@final
class Caller:
    """Somebody who calls, with what its credential grants. All calls and reads with the same
    credential share one object. A reload of the settings may change what it may do.
    """

    __slots__ = (
        "__weakref__",
        "_grants",
        "_is_revoked",
        "_rights",
        "expires_at",
        "has_proof",
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
        self.has_proof: Final = has_proof
        self._is_revoked = False
        self._grants: Sequence[Grant] = ()
        self._rights: dict[Action, Right] = {}
        """By each action that the caller may do: where it may do it."""
        self.change(grants, required)

    def change(self, grants: Sequence[Grant], required: Iterable[Action]) -> None:
        """Give the caller these grants in place of its former ones. It may also do all actions that
        need no proof."""
        self._grants = grants
        self.require(required)

    def require(self, required: Iterable[Action]) -> None:
        """Require a proof for these actions from now on, and for no others."""
        if self._is_revoked:
            return
        streams: dict[Action, Patterns] = {}
        for grant in self._grants:
            for action in grant.actions:
                patterns = grant.streams if action in OF_STREAMS else EVERY_STREAM
                streams[action] = streams.get(action, ()) + patterns
        self._rights = dict.fromkeys(frozenset(Action).difference(required), Right())
        for action in streams.keys() & frozenset(required):
            patterns = EVERY_STREAM if "*" in streams[action] else streams[action]
            self._rights[action] = Right(patterns, self.tenant)

    @property
    def is_revoked(self) -> bool:
        return self._is_revoked

    def revoke(self) -> None:
        """Let the caller do nothing from now on."""
        self._is_revoked = True
        self._grants = ()
        self._rights = {}

    def check(self, action: Action, now: float, stream_id: str | None = None) -> Tenant | None:
        """Check whether the caller may do something; without `stream_id`, whether it may do it to
        any stream at all. `now` is the time of the event loop.

        Returns: the tenant to whose channels the action is limited; None if it may be any channel,
            because the action needs no proof.
        Raises: TokenExpired; Unauthenticated, if the action requires a proof and the caller has
            none, or if its credential was revoked; PermissionDenied.
        """
        if now >= self.expires_at:
            raise TokenExpired
        right = self._rights.get(action)
        if right is None:
            raise self._refusal(action)
        known = right.known
        if known is not None and stream_id is not None and stream_id not in known:
            check_stream(action, stream_id, right)
        return right.tenant

    def check_streams(
        self, action: Action, now: float, stream_ids: Iterable[str] | None
    ) -> Tenant | None:
        """Do the same as `check` for several streams; None stands for all streams."""
        self.check(action, now)
        right = self._rights[action]
        if right.known is None:
            return right.tenant
        if stream_ids is None:
            allowed = ", ".join(right.streams)
            raise PermissionDenied(
                f"this token may {OF_STREAMS[action]} only some streams; allowed are {allowed}",
                action=action.value,
            )
        for stream_id in stream_ids:
            check_stream(action, stream_id, right)
        return right.tenant

    def _refusal(self, action: Action) -> MegaphoneError:
        if self._is_revoked:
            return Unauthenticated("the token is not valid here", was_presented=True)
        if not self.has_proof:
            return Unauthenticated(f"{DOING[action]} needs a token: send `Authorization: Bearer …`")
        return PermissionDenied(f"this token may not {MAY_NOT[action]}", action=action.value)


def check_stream(action: Action, stream_id: str, right: Right) -> None:
    """Raises: PermissionDenied, if a right is not for a stream."""
    if not any(fits(stream_id, pattern) for pattern in right.streams):
        raise PermissionDenied(
            f"this token may not {OF_STREAMS[action]} this stream", action=action.value
        )
    if right.known is not None:
        if len(right.known) >= STREAMS_REMEMBERED:
            right.known.clear()
        right.known.add(stream_id)


def fits(stream_id: str, pattern: str) -> bool:
    """Return whether a pattern of a grant allows a stream."""
    if pattern.endswith("*"):
        return stream_id.startswith(pattern[:-1])
    return stream_id == pattern


ANYONE: Final = Caller("anyone", DEFAULT, has_proof=False)
"""The caller of every call on a node that requires no proof of anybody."""
