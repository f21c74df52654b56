"""The interfaces that the core needs and other packages implement: store, observer and others.

No interface may require that channels live in this process, because a store may be a remote one.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self

from megaphone.core.access import Caller, Names, Peer
from megaphone.core.log import Batch
from megaphone.core.tenants import DEFAULT, Tenant
from megaphone.errors import MegaphoneError
from megaphone.model import (
    NO_OPTIONS,
    ChannelInfo,
    ChannelOptions,
    DrainProgress,
    Event,
    PipeInfo,
    ReadEnd,
    ReadKind,
    ReadOptions,
)

if TYPE_CHECKING:
    from asyncio import Future

OnRemoved = Callable[[str, float, int], None]
"""Called when a channel has expired or was removed. The arguments are its consumer address, its age
in seconds, and how many of its events were lost, that is, never sent to a reader. The callback must
not raise or wait."""


class WouldBlock(Exception):
    """The call would have to wait, and has changed nothing. Clients never see this error."""


class Append(NamedTuple):
    """One write: an event for a channel. `request_id` is its idempotency key.

    With `tenant`, only a channel of this tenant can be found, as in the calls of `Store`.
    """

    channel_id: bytes
    event: Event
    request_id: str | None = None
    tenant: Tenant | None = None


class Stored(NamedTuple):
    """The result of an accepted write: the event is in the log of its channel."""

    event_id: str
    """The id of the event, or of an earlier event that has the same idempotency key."""
    is_new: bool
    """False if the channel had accepted an earlier event with the same idempotency key."""


AppendResult = Stored | MegaphoneError | WouldBlock
"""The result of one of several writes. Errors are returned as values, not raised."""


class Lease(Protocol):
    """An open read of one channel. See `megaphone.core.channel.Lease` for the rules.

    No call waits. `now` is the time of the event loop.
    """

    on_ready: Callable[[], None] | None
    """Called when `take` may return something new, and sometimes in vain; also when the lease is
    over. It may be called in the middle of another call of the store, so it must only note that
    something is ready."""

    @property
    def cursor(self) -> str:
        """The cursor before the first event of this read: an event id, or START. A read that
        resumes after it misses no event of this read."""

    @property
    def recovered(self) -> bool | None:
        """Whether the cursor that the reader named was still known. If the reader named none: False
        if the channel has a gap, else None."""

    @property
    def channel_id(self) -> bytes: ...

    @property
    def taken_at(self) -> float | None:
        """When the reader took events last, in the time of the event loop; None if it has taken
        none."""

    @property
    def ready(self) -> int:
        """The length of the backlog. A `take` may return fewer events, because of its limits and
        the window."""

    @property
    def is_fetching(self) -> bool:
        """Whether a remote store fetches events now, because of a `take` that returned None."""

    @property
    def is_over(self) -> bool:
        """Whether `take` will return no more events, because of `interrupt`, because another
        reader has taken over, or because the channel was removed."""

    @property
    def ended_by(self) -> ReadEnd | None:
        """Why the store has ended the read, if it has: TAKEN_OVER, CHANNEL_GONE or STORE_LOST."""

    def take(self, limit: int, max_bytes: int, now: float) -> Batch | None:
        """Confirm the events taken before, and return the next events in order.

        Returns at most `limit` events and at most `max_bytes` of bodies and overhead, but at least
        one event, however large it is. Returns None if no event is ready, and when the lease is
        over. A remote store may return None although events are ready; it then fetches them, and
        calls `on_ready`.

        By this call the caller says that the connection has all bytes of the events taken before.
        Events count as sent only then: if the read breaks earlier, they are sent again, however
        long ago they were taken.

        The events of a batch are contiguous in the log. The batch has the epoch of the log and the
        offset of its first event. A store that lost data has another epoch afterwards, so that
        nobody confuses an old offset with an offset of the new log.
        """

    def pass_over(self, after: int, last: int, now: float) -> None:
        """Deliver the events behind an offset, up to another one that was taken, if all events up
        to the first offset are delivered. For an acknowledging lease whose client was not sent
        these events; a plain lease ignores it.
        """

    def interrupt(self) -> None:
        """Make each later `take` return None."""

    def settle(self, now: float) -> "Future[bool] | None":
        """End the read cleanly before its client learns of the end, if that takes a while.

        Returns: None, if `release` does it at once. Otherwise a future, which says whether the
            store has ended the read cleanly. If not, the next read may get events of this one
            again, so the client must not see a clean end.
        """

    def release(self, *, clean: bool, now: float) -> None:
        """End the read now. A second call changes nothing. `on_ready` is not called any more.

        A clean end confirms the events taken.
        """


class Surveyed(Protocol):
    """A channel, for a look at all channels. Where channels live in this process, it always says
    how the channel is now; otherwise, how it was when the store was asked."""

    @property
    def consumer_address(self) -> str: ...

    @property
    def channel_id(self) -> bytes: ...

    @property
    def created_at(self) -> float:
        """In the time of the event loop."""

    @property
    def depth(self) -> int:
        """How many events occupy a place."""

    @property
    def in_flight(self) -> int: ...

    @property
    def unsent(self) -> int:
        """How many events the next reader would get now."""

    @property
    def size(self) -> int:
        """As `ChannelInfo.bytes`; 0 if it was not asked for, or the store does not say it. May
        take long to find out, if the channel has many events."""

    @property
    def accepted(self) -> int:
        """How many events the channel has accepted."""

    @property
    def waiting_writers(self) -> int: ...

    @property
    def is_read(self) -> bool: ...

    @property
    def oldest_us(self) -> int | None:
        """The timestamp of the oldest event that occupies a place; None if there is none."""

    @property
    def label(self) -> str:
        """As in `ChannelOptions`."""

    @property
    def tenant_name(self) -> str:
        """To whom the channel belongs."""


class Store(Protocol):
    """The place where channels and their events live.

    A call that is cancelled has taken effect completely or not at all, but for `append`.

    Each channel belongs to a tenant. For a call with `tenant`, the channels of all other tenants do
    not exist.
    """

    is_remote: bool
    """Whether the calls that do not wait always raise WouldBlock: the store is elsewhere."""

    async def create(
        self,
        channel_id: bytes,
        consumer_address: str,
        options: ChannelOptions = NO_OPTIONS,
        tenant: Tenant = DEFAULT,
    ) -> None:
        """Add an empty channel, which belongs to `tenant`. It has the limits from the
        settings where `options` has none.

        Raises: LimitExceeded, when the store has as many channels as it may have, or no memory for
            one more. A remote store also applies the limits of the tenant, for all nodes together,
            and raises RateLimited or LimitExceeded for them.
        """

    def create_nowait(
        self,
        channel_id: bytes,
        consumer_address: str,
        options: ChannelOptions = NO_OPTIONS,
        tenant: Tenant = DEFAULT,
    ) -> None:
        """Do the same as `create`, without waiting.

        Raises: WouldBlock; a remote store may raise it in each call. Also the error of `create`.
        """

    async def append(self, writes: Sequence[Append], *, wait: bool) -> Sequence[AppendResult]:
        """Append each event to the log of its channel. Writes of one channel keep their order, and
        have the same `tenant`.

        If a channel is full and `wait` is set, the call waits for a free place, first come, first
        served, and at most the write timeout for each event. Without `wait` the result is
        WouldBlock. If a write is refused or would block, the later writes of the same channel in
        this call are not tried and get the same result.

        If a call is cancelled while it waits for a place, the writes before that one stay accepted
        and the later ones are not tried. The event itself is not accepted, or the call goes on as
        if it was not cancelled, because the event was accepted just before.

        Returns: a result for each write, in the same order: Stored, or WouldBlock, or an error. If
            it is not Stored, the event was not accepted. The errors are: ChannelNotFound;
            LimitExceeded, when there is no memory for the event, or when `max_waiting_writers`
            writers wait already; WriteTimeout; AgentMoved; ShuttingDown.
        """

    def begin_append(
        self, write: Append, on_result: Callable[[AppendResult | Exception], None]
    ) -> None:
        """Do the same as `append` for one write without `wait`, and return at once.

        `on_result` is called in a later turn of the event loop, with the result, or with the
        exception with which the store has failed. It must neither raise nor wait.
        """

    def append_nowait(self, write: Append) -> Stored:
        """Do the same as `append` for one write, without waiting.

        Raises: WouldBlock, when the channel is full; a remote store may raise it in each call. Also
            the errors that `append` returns.
        """

    def append_run_nowait(
        self,
        channel_id: bytes,
        events: list[Event],
        tenant: Tenant | None = None,
    ) -> int:
        """Append the first of some events that have no idempotency keys, as many as get a place at
        once.

        Returns: how many; 0 if writers wait in the channel.
        Raises: ChannelNotFound; WouldBlock; a remote store may raise it in each call.
        """

    async def append_to_all(
        self,
        channel_ids: Sequence[bytes],
        events: list[Event],
        tenant: Tenant | None = None,
    ) -> Sequence[int | MegaphoneError]:
        """Append the first of some events that have no idempotency keys to each of many channels,
        as many as get a place there at once.

        Returns: for each channel how many, or the error for which it has none: ChannelNotFound, or
            that with which the store has failed.
        """

    async def open(
        self,
        channel_id: bytes,
        consumer_address: str,
        options: ReadOptions,
        tenant: Tenant | None = None,
    ) -> Lease:
        """Take the lease of a channel. The caller must release it.

        Raises: ChannelNotFound, also when `consumer_address` is not exactly the address of the
            channel; ReaderBusy or TakenOver, as `core.channel.Channel.lease`.
        """

    def open_nowait(
        self,
        channel_id: bytes,
        consumer_address: str,
        options: ReadOptions,
        tenant: Tenant | None = None,
    ) -> Lease:
        """Do the same as `open`, without waiting.

        Raises: WouldBlock; a remote store may raise it in each call. Also the errors of `open`.
        """

    async def acknowledge(
        self,
        channel_id: bytes,
        consumer_address: str,
        event_id: str,
        tenant: Tenant | None = None,
    ) -> int:
        """Deliver an event and all events before it.

        Returns: how many of them were not delivered before.
        Raises: ChannelNotFound.
        """

    def acknowledge_nowait(
        self,
        channel_id: bytes,
        consumer_address: str,
        event_id: str,
        tenant: Tenant | None = None,
    ) -> int:
        """Do the same as `acknowledge`, without waiting.

        Raises: WouldBlock; a remote store may raise it in each call. Also the error of
            `acknowledge`.
        """

    async def exists(
        self,
        channel_ids: Sequence[bytes],
        tenant: Tenant | None = None,
    ) -> dict[bytes, str]:
        """Return the consumer addresses of those channels that exist and have not expired, by their
        ids."""

    def exists_nowait(
        self,
        channel_ids: Sequence[bytes],
        tenant: Tenant | None = None,
    ) -> dict[bytes, str]:
        """Do the same as `exists`, without waiting.

        Raises: WouldBlock; a remote store may raise it in each call.
        """

    async def remove(
        self,
        channel_id: bytes,
        tenant: Tenant | None = None,
    ) -> None:
        """Remove a channel now: its open read ends cleanly, waiting writers get ChannelNotFound.

        Raises: ChannelNotFound.
        """

    async def list(self, agent: str | None, skip: int, limit: int) -> Sequence[str]:
        """Return consumer addresses, oldest channel first: of one agent, or of all agents."""

    async def count(self, agent: str) -> int:
        """Return how many channels an agent has."""

    def survey(
        self, agent: str | None = None, *, with_size: bool = False
    ) -> AsyncIterator[Sequence[Surveyed]]:
        """Yield the channels of an agent, or of all agents, in slices. Other tasks may run between
        two slices. A store in memory yields the oldest channels first. A remote store yields them
        in any order; it raises StoreUnavailable.

        `with_size` says whether `Surveyed.size` will be used.
        """

    async def look_again(self, channels: Sequence[Surveyed]) -> Sequence[Surveyed]:
        """Return those channels of a survey that are still there, as they are now."""

    async def info(self, channel_id: bytes) -> ChannelInfo:
        """Return how a channel is now. Raises: ChannelNotFound; StoreUnavailable."""

    async def find(self, digits: str) -> Sequence[bytes]:
        """Return the ids of the channels whose id begins with these hexadecimal digits, of which
        there are at least `SHORT_ID_DIGITS`. May take long. Raises: StoreUnavailable."""

    # -- Life cycle

    async def check_room(self) -> None:
        """Raises: LimitExceeded, when `create` would raise it now."""

    def check_serves(self) -> None:
        """Raises: StoreUnavailable, when the store has not been there for several seconds."""

    async def quiesce(self) -> None:
        """From now on refuse waiting writers, and writers that would wait, with ShuttingDown."""

    async def aclose(self) -> None:
        """Free everything that the store has in this process. No other call may follow."""


class Doorkeeper(Protocol):
    """Decides who calls. `proof` is the whole value of the header `Authorization`; None if the call
    has none."""

    def known(self, proof: str | None, names: Names | None = None) -> Caller | None:
        """Return the caller with a proof, if that is known at once; None if `admit` must be asked.

        `names` are those in the certificate of the client; None if they have not been looked for.

        The caller may have expired, or may not be allowed what it calls for: see `Caller.check`.
        """

    async def admit(self, proof: str | None, peer: Peer) -> Caller:
        """Return the caller with a proof, whose calls come from `peer`.

        Raises: Unauthenticated, when the proof is not valid here; TokenExpired; RateLimited, when
            too many proofs of the peer were refused; KeysUnavailable.
        """


class Drains(Protocol):
    """Moves all agents of this node to another one."""

    progress: DrainProgress | None
    """The progress of the drain that runs; None while none runs."""

    def drain(self, target: str) -> AsyncGenerator[DrainProgress, None]:
        """Move all agents of this node to another one, and end when no agent is left to move.

        Yields the progress at the start, at regular times, and at the end. When the generator is
        closed or raises, each agent that has not moved has the same mode as before.

        Raises: BadRequest, when the target is not a URL such as http://host:3001; WrongMode, while
            another drain runs, or when the target refuses an agent; Unauthenticated, when the two
            nodes do not have the same secret; TargetUnavailable.
        """


class Counts(Protocol):
    """What a node has counted."""

    def counts(self) -> Mapping[str, int]:
        """Return by its name how often each thing has happened since the start."""

    def levels(self) -> Mapping[str, int]:
        """Return by its name how much there is of each thing now."""


class Pipes(Protocol):
    """Replicates agents to other nodes."""

    def described(self) -> Sequence[PipeInfo]:
        """Return the pipes to other nodes."""

    async def unpipe(self, agent: str, target: str | None, *, force: bool) -> None:
        """Stop replicating an agent, to one target or to all, without handing it over.

        With its last pipe the agent gets the mode that it had before. The copies at the target
        expire. Without `force` a target must say that nobody reads channels of the agent there,
        because such readers would get nothing more.

        Raises: AgentNotFound; BadRequest, when the target is not a URL; WrongMode, when there is no
            such pipe, or, without `force`, when channels are or may be in use at a target.
        """

    async def pipe(self, agent: str, target: str) -> None:
        """Replicate an agent to a target until this node stops.

        Returns once the target has accepted the agent.

        Raises: AgentNotFound; BadRequest, when the target is not a URL such as http://host:3001;
            WrongMode; Unauthenticated, when the two nodes do not have the same secret;
            TargetUnavailable.
        """


class Sending(Protocol):
    """The traces of the events that one call of a writer writes. A context: leaving it ends their
    spans, as failed if an exception leaves it."""

    @property
    def has_spans(self) -> bool:
        """Whether there is anything to `note`."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def trace_of(self, traceparent: str | None) -> str | None:
        """Return the trace context of an event whose writer sent this, valid or not; the same one
        whenever it is asked again."""

    def to_channel(self, short_id: str | None) -> None:
        """Note to which channel the events go, if all go to one, and it is known."""

    def note(
        self,
        traceparent: str | None,
        event_id: str | None = None,
        *,
        failure: str | None = None,
        events: int = 1,
    ) -> None:
        """Note what became of some events whose writer sent this. `event_id` is that of the event,
        if there is one; `failure` is the reason, if one of them was not accepted."""


class Receiving(Protocol):
    """The span of a batch that is on its way to a reader."""

    def end(self, *, is_sent: bool) -> None:
        """End the span. `is_sent` says whether the connection has all bytes of the batch."""


class Tracing(Protocol):
    """Makes the spans of events whose traces are sampled. No call may wait or raise."""

    @property
    def makes_spans(self) -> bool:
        """Whether there are any spans."""

    def sending(self, face: str) -> Sending:
        """Return the traces of the events of one call, over a face of this name."""

    def receive(self, events: Sequence[Event], short_id: str) -> Receiving | None:
        """Begin the span of a batch that a reader of a channel is handed; None if no event of it is
        traced."""


class Observer(Protocol):
    """Counts what happens to channels, events, agents. Each call must return at once and not raise.

    The core and the cluster call it when something happens. They report each thing once; one call
    may report several events.
    """

    def channel_created(self) -> None: ...

    def channel_removed(self, age_s: float, lost: int) -> None:
        """A channel of this age in seconds has expired or was removed. `lost` events of it were
        never sent to a reader; 0 if another node owns the channel."""

    def events_written(self, count: int) -> None: ...

    def events_read(self, count: int, redelivered: int, written_us: int) -> None:
        """A reader took `count` events, of which `redelivered` were sent to a reader before.
        `written_us` is the timestamp of the oldest of the others; 0 if there is none."""

    def channel_applied(self) -> None:
        """This node added a channel that another node replicates to it."""

    def channel_released(self) -> None:
        """This node released a channel, because another node owns it."""

    def events_applied(self, count: int) -> None:
        """This node appended events that another node replicates to it."""

    def events_replicated(self, count: int) -> None:
        """This node sent events to a target. Events for two targets are counted twice."""

    def events_lost(self, count: int) -> None:
        """Events were evicted before a reader got them, or were refused as events of a source."""

    def agents_left_behind(self, count: int) -> None:
        """A drain is over, and could not move `count` agents that have channels."""

    def writer_waits(self, channel_id: bytes) -> None:
        """A writer found a channel full, and starts to wait for a free place."""

    def writer_waited(self, channel_id: bytes, seconds: float) -> None:
        """A writer stops waiting after some seconds: it has its result, or was cancelled."""

    def events_unroutable(self, count: int) -> None:
        """`count` events were written to a channel that does not exist."""

    def refused(self, error: MegaphoneError) -> None:
        """A client got an error for its call, or for a part of it that a limit of its tenant
        refuses. The faces report calls, and the core reports parts."""

    def writer_timed_out(self) -> None:
        """A writer has found no free place in time."""

    def read_cut_off(self) -> None:
        """A read was broken because its client had stalled."""

    def read_started(self, kind: ReadKind, recovered: bool | None) -> None:
        """A read of a channel was opened. `recovered` is as that of `Lease`."""

    def read_ended(self, kind: ReadKind, end: ReadEnd) -> None:
        """A read of a channel has ended, for the first of several reasons if there were several."""
