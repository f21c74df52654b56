"""The link of this node to a cluster: a link to each master, and calls that find their master."""

import asyncio
import logging
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain, count
from time import monotonic
from typing import Any, TypeAlias

from megaphone.errors import StoreUnavailable
from megaphone.model import Endpoint
from megaphone.store.redis.connection import (
    CALL_S,
    Argument,
    Calls,
    Connection,
    Pending,
    Place,
    Reply,
    Server,
    pack,
)
from megaphone.store.redis.counts import StoreCounts
from megaphone.store.redis.errors import (
    ClusterDown,
    NoAnswer,
    NoPermission,
    Redirected,
    ReplyError,
    TryAgain,
    UnusableStore,
)
from megaphone.store.redis.link import (
    CLOSES,
    DOUBTFUL_S,
    MAX_WAITING_BYTES,
    MAX_WAITING_CALLS,
    TOO_MANY,
    Greet,
    Greeted,
    Link,
    connect_to,
    refuse,
    tls_of,
)
from megaphone.store.redis.masters import OneServer
from megaphone.store.redis.opinions import opinions_of
from megaphone.store.redis.slots import SlotMap, epochs_in, slot_of
from megaphone.store.redis.url import StoreUrl, Topology

log = logging.getLogger(__name__)

AGAIN_FOR_S = 2.0
"""For how long a call is sent again while its slot is on the move or has no master."""
PAUSE_S = 0.002
MAX_PAUSE_S = 0.05
"""How long such a call waits before it is sent again: first, and at most."""
MAX_HELD_CALLS = MAX_WAITING_CALLS
MAX_HELD_BYTES = MAX_WAITING_BYTES
"""How many calls are held at most, and how long they are together."""
MAP_S = 1.0
"""How often this node asks for the slots, if nothing tells it that they have changed."""
MAP_AGAIN_S = 0.2
"""How long it waits between two questions, if something does."""
OTHERS_ASKED = 2
"""How many servers are asked whether a master was replaced, beside those that may replace it."""
KEPT_S = 10.0
"""How long a link to a master without slots is kept after a call was sent there."""
NOT_DONE = (Redirected, TryAgain, ClusterDown)
"""Errors of calls that were not carried out, and that another master or a later time may change."""


class SlotCall:
    """A call in a cluster. An answer that says that another master has the slot, or that nobody
    has it now, does not end the call: it is sent again, because it was not carried out. If that has
    happened often enough, the call fails with StoreUnavailable, and never with Redirected."""

    __slots__ = (
        "_cluster",
        "_pending",
        "again_until",
        "is_sent_again",
        "link",
        "number",
        "packed",
        "pause_s",
        "slot",
    )

    def __init__(
        self,
        cluster: "ClusterLink",
        number: int,
        slot: int,
        packed: bytes,
        pending: Pending,
        now: float,
    ) -> None:
        self._cluster = cluster
        self._pending = pending
        self.number = number
        """Counts the calls of the cluster."""
        self.slot = slot
        self.packed = packed
        self.again_until = now + AGAIN_FOR_S
        self.pause_s = 0.0
        self.link: Link | None = None
        """The link by which it was sent last."""
        self.is_sent_again = False

    def done(self) -> bool:
        return self._pending.done()

    def set_result(self, reply: Reply, /) -> None:
        self._pending.set_result(reply)

    def set_exception(self, error: Exception, /) -> None:
        if isinstance(error, NOT_DONE) and self._cluster.send_again(self, error):
            return
        if isinstance(error, Redirected):
            error = StoreUnavailable("slots of the store of channels are on the move")
        self._pending.set_exception(error)


class Held:
    """The calls for a slot that wait before they are sent, again or for the first time."""

    __slots__ = ("calls", "reasons")

    def __init__(self) -> None:
        self.calls: list[SlotCall] = []
        self.reasons = 0
        """How many things must happen before they are sent."""


class ClusterLink:
    """A link to each master of a cluster, as `Link` for one.

    A call goes to the master of its first key, and all its keys must be in one slot. Calls for one
    slot leave in the order in which they were made. Those that a slot on the move delays end within
    AGAIN_FOR_S more than others, whatever happens.

    A master that another server has replaced gets no calls any more, even if it does not know of
    that: no server is believed whose map is older than that of this node, unless most of them say
    the same.

    `greet` is called with each new connection to a master.
    """

    has_slots = True

    def __init__(self, url: StoreUrl, *, name: str, greet: Greet | None = None) -> None:
        """Raises: UnusableStore."""
        self._tls = tls_of(url)
        self.url = url
        self.counts = StoreCounts()
        self._name = name
        self._greet = greet
        self._map = SlotMap([])
        self._asked_at = monotonic()
        """When this node asked for the map."""
        self._replaced: set[Endpoint] = set()
        """Former masters that other servers have replaced."""
        self.replaced_at = -math.inf
        self.on_old_answers: Callable[[], None] = lambda: None
        """These are as those of `Link`."""
        self._knows_epochs = True
        self._links: dict[Endpoint, Link] = {}
        self._redirected_at: dict[Endpoint, float] = {}
        """When a call was last sent to a master because another one had said so."""
        self._numbers = count()
        self._held: dict[int, Held] = {}
        """By their slots."""
        self._held_calls = 0
        self._held_bytes = 0
        self._heard_at: Endpoint | None = None
        """The server that sends messages."""
        self._followers: list[Callable[[Place], None]] = []
        self._is_outdated = asyncio.Event()
        self._mapping: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._is_closed = False

    async def start(self) -> None:
        """Connect to all masters.

        Raises: StoreUnavailable, when one does not answer or cannot serve now; UnusableStore, when
            that is not going to change; what `greet` raises.
        """
        self._map = await self._find_map()
        self._links = {place: self._make_link(place) for place in self._map.masters}
        for place in self._links:
            self._choose_tag(place)
        starts = [asyncio.create_task(link.start()) for link in self._links.values()]
        await asyncio.wait(starts)
        errors = [error for one in starts if (error := one.exception()) is not None]
        if errors:
            await self.aclose()
            raise next((one for one in errors if isinstance(one, UnusableStore)), errors[0])
        self._mapping = asyncio.create_task(self._keep_map())

    async def aclose(self) -> None:
        """End all connections now. Calls without an answer fail."""
        self._is_closed = True
        if self._mapping is not None:
            self._mapping.cancel()
            with suppress(asyncio.CancelledError):
                await self._mapping
        await asyncio.gather(*(link.aclose() for link in self._links.values()), *self._closing)
        for slot in list(self._held):
            for call in self._held.pop(slot).calls:
                refuse(call, CLOSES, None)

    # What there is.

    @property
    def server(self) -> Server | None:
        """What a master said of itself."""
        return next((link.server for link in self._links.values()), None)

    @property
    def is_up(self) -> bool:
        return all(link.is_up for link in self._links.values())

    def masters(self) -> Sequence[Link]:
        """Return the links to all masters."""
        return list(self._links.values())

    def master_of(self, key: str) -> Link:
        """Return the link to the master of a key."""
        return self._link_to(self._owner_of(slot_of(key)))

    def _owner_of(self, slot: int) -> Endpoint:
        owner = self._map.owner_of(slot)
        assert owner is not None  # because the map is complete
        return owner

    # Calls.

    def call(self, *args: Argument) -> asyncio.Future[Reply]:
        """Send a command that has a key. Never waits. See `Link.call`."""
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self.send(pack(args), future, _key_of(args))
        return future

    def send(self, packed: bytes, pending: Pending, key: str) -> SlotCall:
        """Do the same as `call` for a command that is packed already, and has a key. See
        `Link.send`."""
        now = asyncio.get_running_loop().time()
        call = SlotCall(self, next(self._numbers), slot_of(key), packed, pending, now)
        if self._held and (held := self._held.get(call.slot)) is not None:
            self._hold(call, held)
        else:
            self._send(call)
        return call

    def reconnect(self, reason: str) -> None:
        """End all connections, and make others."""
        for link in self._links.values():
            link.reconnect(reason)

    def _send(self, call: SlotCall) -> None:
        call.link = self._link_to(self._owner_of(call.slot))
        call.link.send(call.packed, call)

    def send_again(self, call: SlotCall, error: Exception) -> bool:
        """Send a call again, now or soon. Returns: False if it has been sent often enough."""
        loop = asyncio.get_running_loop()
        if self._is_closed or loop.time() >= call.again_until:
            return False
        call.is_sent_again = True
        if isinstance(error, Redirected):
            place = _place_in(error.address, call)
            self._redirected_at[place] = loop.time()
            if not error.is_for_ever:
                self._ask(call, place)
                return True
            if not (self.owns(place, call.slot) or place in self._replaced):
                self._map.note(call.slot, place)
                self._let_finish(call.link, [call.slot])
        self._doubt()
        held = self._held_in(call.slot)
        if not held.reasons:
            self._pause(call, held)
        self._hold(call, held)
        return True

    def _ask(self, call: SlotCall, place: Endpoint) -> None:
        """Send a call to a master that is about to get its slot."""
        call.link = self._link_to(place)
        call.link.call("ASKING").add_done_callback(_ignore)
        call.link.send(call.packed, call)

    def _hold(self, call: SlotCall, held: Held) -> None:
        size = len(call.packed)
        if self._held_calls >= MAX_HELD_CALLS or self._held_bytes + size > MAX_HELD_BYTES:
            asyncio.get_running_loop().call_soon(refuse, call, TOO_MANY, NoAnswer.BUSY)
            return
        self._held_calls += 1
        self._held_bytes += size
        held.calls.append(call)

    def _held_in(self, slot: int) -> Held:
        """From now on hold the calls for a slot. Returns: where."""
        held = self._held.get(slot)
        if held is None:
            held = self._held[slot] = Held()
        return held

    def _pause(self, call: SlotCall, held: Held) -> None:
        """Hold the calls for the slot of a call for a while, longer each time."""
        held.reasons += 1
        asyncio.get_running_loop().call_later(call.pause_s, self._let_go, call.slot)
        call.pause_s = min(MAX_PAUSE_S, max(PAUSE_S, 2 * call.pause_s))

    def _let_finish(self, old: Link | None, slots: Sequence[int]) -> None:
        """Hold the calls for slots that have left a master, until that has answered all that it has
        got: they may come back, and must be sent before later ones."""
        if old is None or not old.is_up:
            return
        for slot in slots:
            self._held_in(slot).reasons += 1

        def finished(done: asyncio.Future[Reply]) -> None:
            _ignore(done)
            for slot in slots:
                self._let_go(slot)

        old.call("PING").add_done_callback(finished)

    def _let_go(self, slot: int) -> None:
        held = self._held.get(slot)
        if held is None:
            return
        held.reasons -= 1
        if held.reasons:
            return
        del self._held[slot]
        self._held_calls -= len(held.calls)
        self._held_bytes -= sum(len(call.packed) for call in held.calls)
        for call in sorted(held.calls, key=lambda one: one.number):
            if not call.done():
                self._send(call)

    # Masters.

    def _link_to(self, place: Endpoint) -> Link:
        link = self._links.get(place)
        if link is None:
            link = self._links[place] = self._make_link(place)
            link.start_behind()
        return link

    def _make_link(self, place: Endpoint) -> Link:
        link = Link(
            self.url,
            name=self._name,
            greet=partial(self._greet_master, place),
            masters=OneServer(
                place, f"the master {place} of the store", partial(self._is_replaced, place)
            ),
            counts=self.counts,
        )
        link.on_down = self._doubt
        link.on_tag_moved = partial(self._choose_tag, place)
        return link

    async def _greet_master(self, place: Endpoint, new: Greeted) -> None:
        if self._greet is None:
            return
        try:
            await self._greet(new._replace(home=_Routed(self, place, new.calls)))
        except Redirected:
            self._doubt()
            raise StoreUnavailable("slots of the store of channels are on the move") from None

    def owns(self, place: Endpoint, slot: int) -> bool:
        """Return whether a master has a slot, as far as this node knows."""
        return self._map.owner_of(slot) == place

    def _leave(self, place: Endpoint) -> None:
        """Close the link to a server that is no master any more. Calls that wait for it go to the
        masters of their slots."""
        link = self._links.pop(place)
        for one in link.take_waiting():
            if not isinstance(one, SlotCall):
                refuse(one, "the server is no master any more", NoAnswer.UNREACHABLE)
            elif not one.done():
                self._send(one)
        closing = asyncio.create_task(link.aclose())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    # The map of slots.

    def _doubt(self) -> None:
        self._is_outdated.set()

    async def _keep_map(self) -> None:
        while True:
            wait_s = MAP_S if self.is_up else MAP_AGAIN_S
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._is_outdated.wait()
            self._is_outdated.clear()
            asked_at = monotonic()
            try:
                found = await self._find_map()
            except (StoreUnavailable, UnusableStore) as error:
                log.debug("nobody tells the slots of the store: %s", error)
            else:
                self._use(found, asked_at)
            await asyncio.sleep(MAP_AGAIN_S)

    def _use(self, found: SlotMap, asked_at: float) -> None:
        before, self._map = self._map, found
        if not found.is_as(before):
            for place, slots in before.lost_until(found).items():
                if place in found.masters:  # else its link is closed at once
                    self._let_finish(self._links.get(place), slots)
            self._replaced.difference_update(found.masters)
            for place in before.replaced_until(found):
                self._note_replaced(place)
        self._asked_at = asked_at
        needed = {*found.masters, *self._redirected_lately()} - self._replaced
        for place in found.masters:
            self._link_to(place)
        for place in [one for one in self._links if one not in needed]:
            self._leave(place)
        for place in found.masters:
            if found.owner_of(slot_of(self._links[place].tag)) != place:
                self._choose_tag(place)
        if self._heard_at is not None and self._heard_at not in found.masters:
            for follow in self._followers:
                follow(found.masters[0])

    def _note_replaced(self, place: Endpoint) -> None:
        """Let a master that was replaced answer nothing any more."""
        self._replaced.add(place)
        self.replaced_at = monotonic()
        link = self._links.get(place)
        if link is not None:
            link.reconnect("another server has replaced it")
            if link.heard_at > self._asked_at - DOUBTFUL_S:
                self.on_old_answers()

    def _redirected_lately(self) -> Iterator[Endpoint]:
        now = asyncio.get_running_loop().time()
        return (place for place, at in self._redirected_at.items() if now - at < KEPT_S)

    def _choose_tag(self, place: Endpoint) -> None:
        if place in self._map.masters:
            self._links[place].tag = self._map.tag_of(place)

    async def _find_map(self) -> SlotMap:
        """Ask one server after the other for the slots, until one knows masters for all of them. A
        server that has left the cluster may answer, and know none. One that was cut off or stood
        still may know old masters; if most servers do, the cluster was set up anew, and counts its
        epochs from 0 again.

        Raises: StoreUnavailable; UnusableStore, when all refuse this node.
        """
        places = random.sample(list(self._links), len(self._links))
        places.sort(key=lambda place: not self._links[place].is_up)
        refusals: list[Exception] = []
        outdated: list[SlotMap] = []
        asked = dict.fromkeys(chain(places, self.url.endpoints))
        for place in asked:
            try:
                found = await self._ask_for_map(place)
            except (StoreUnavailable, UnusableStore) as error:
                refusals.append(error)
            else:
                if not found.is_complete:
                    text = f"the store at {place} knows slots without a master"
                elif found.is_older_than(self._map):
                    outdated.append(found)
                    text = f"the store at {place} knows old masters"
                else:
                    return found
                refusals.append(StoreUnavailable(text))
        if len(outdated) > len(asked) // 2:
            return outdated[0]
        raise next((one for one in refusals if isinstance(one, UnusableStore)), refusals[0])

    async def _is_replaced(self, place: Endpoint) -> bool:
        """Ask whether another server has replaced a master: its replicas, because one of them
        would know it first, and some others."""
        replicas = self._map.replicas_of(place)
        known = chain(self._links, self.url.endpoints)
        others = [one for one in dict.fromkeys(known) if one != place and one not in replicas]
        asked = [*replicas, *random.sample(others, min(len(others), OTHERS_ASKED))]
        if not asked:
            return False
        maps, _ = await opinions_of(self._ask_for_map(one, by_link=False) for one in asked)
        newer = [one for one in maps if one.is_complete and not one.is_older_than(self._map)]
        is_replaced = place in self._replaced or any(
            place in self._map.replaced_until(one) for one in newer
        )
        if is_replaced:
            self._doubt()
        return is_replaced

    async def _ask_for_map(self, place: Endpoint, *, by_link: bool = True) -> SlotMap:
        """Ask a server for the slots, by its link if it has one that is up."""
        link = self._links.get(place) if by_link else None
        connection = None
        if link is None or not link.is_up:
            connection, _ = await connect_to(
                place,
                self.url,
                self._tls,
                self._name,
                lambda: Connection(self.counts),
                may_be_replica=True,
            )
        try:
            async with asyncio.timeout(CALL_S):
                return await self._map_of(connection or link, place)  # type: ignore[arg-type]
        except TimeoutError:
            raise StoreUnavailable(f"the store at {place} does not answer") from None
        except NoPermission:
            raise UnusableStore(
                "the store's user may not ask for the slots: allow it +cluster|slots +asking"
            ) from None
        except ReplyError as error:
            raise StoreUnavailable(
                f"the store at {place} does not tell its slots: {error}"
            ) from None
        finally:
            if connection is not None:
                connection.end("it has answered")

    async def _map_of(self, calls: Calls, place: Endpoint) -> SlotMap:
        slots, epochs = await asyncio.gather(calls.call("CLUSTER", "SLOTS"), self._epochs_of(calls))
        return SlotMap.read(slots, place, epochs)

    async def _epochs_of(self, calls: Calls) -> dict[bytes, int]:
        try:
            return epochs_in(await calls.call("CLUSTER", "NODES"))
        except NoPermission:  # nodes before 0.12 did without this right
            self._note_missing_right()
            return {}

    def _note_missing_right(self) -> None:
        if self._knows_epochs:
            self._knows_epochs = False
            log.warning("allow the store's user +cluster|nodes: else old masters may be believed")

    # Messages, which each server sends, whichever master they come from.

    def add_follower(self, follow: Callable[[Place], None]) -> None:
        """Call something with the place of a master whenever the server that `connect_to_master`
        returned is none any more."""
        self._followers.append(follow)

    def remove_follower(self, follow: Callable[[Place], None]) -> None:
        if follow in self._followers:
            self._followers.remove(follow)

    async def connect_to_master(
        self, counts: StoreCounts, on_push: Callable[[list[Any]], None] | None = None
    ) -> tuple[Connection, Place]:
        """Return a connection that is logged in at any master, and the place of it.

        Raises: StoreUnavailable; UnusableStore.
        """
        error: Exception = StoreUnavailable("the cluster of the store has no master")
        for place in random.sample(self._map.masters, len(self._map.masters)):
            try:
                connection, _ = await connect_to(
                    place,
                    self.url,
                    self._tls,
                    self._name,
                    lambda: Connection(counts, on_push),
                )
            except (StoreUnavailable, UnusableStore) as refusal:
                error = refusal
            else:
                self._heard_at = place
                return connection, place
        self._doubt()
        raise error


class _Routed:
    """Calls of a greeting: those for slots of the new connection go there, all others to their
    masters."""

    def __init__(self, cluster: ClusterLink, place: Endpoint, calls: Any) -> None:
        self._cluster = cluster
        self._place = place
        self._calls = calls

    def call(self, *args: Argument) -> asyncio.Future[Reply]:
        mine = self._cluster.owns(self._place, slot_of(_key_of(args)))
        future: asyncio.Future[Reply] = (self._calls if mine else self._cluster).call(*args)
        return future


AnyLink: TypeAlias = Link | ClusterLink


def link_of(url: StoreUrl, *, name: str, greet: Greet | None = None) -> AnyLink:
    """Return a link to the store at a URL, of whatever kind that is. Raises: UnusableStore."""
    if url.topology is Topology.CLUSTER:
        return ClusterLink(url, name=name, greet=greet)
    return Link(url, name=name, greet=greet)


def _key_of(args: Sequence[Argument]) -> str:
    key = args[3] if args[0] == "FCALL" else args[1]
    assert isinstance(key, str)
    return key


def _place_in(address: str, call: SlotCall) -> Endpoint:
    """Return the master that an answer names. It may leave out a host that is its own."""
    host, _, port = address.rpartition(":")
    if not host:
        assert call.link is not None
        assert isinstance(call.link.place, Endpoint)
        host = call.link.place.host
    return Endpoint(host, int(port))


def _ignore(done: asyncio.Future[Reply]) -> None:
    """Ask for the error of a call in which nobody is interested."""
    if not done.cancelled():
        done.exception()
