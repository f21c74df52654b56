"""Many events for many channels: how a call divides them, and what it answers for each."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from megaphone.core.addresses import MAX_ADDRESS_LENGTH
from megaphone.core.pace import ADDRESS_WORK, ANSWER_WORK, EVENT_WORK, SLICE, Pace
from megaphone.core.ports import Stored
from megaphone.core.tenants import Tenant
from megaphone.errors import BadRequest, MegaphoneError, StoreUnavailable, WriteTimeout
from megaphone.model import SKIPPED, BatchFailure, BatchWritten, Event, WriteFailure

RUN_EVENTS = SLICE // EVENT_WORK
"""How many events of a batch are written to one channel before other tasks get a turn."""


class Line(NamedTuple):
    """One of many events that a call writes."""

    number: int
    """The index of the event in the call, or in the batch that goes to each channel."""
    address: str
    event: Event
    request_id: str | None


class Slice(NamedTuple):
    """Some events of a batch for some channels: as much work as may be done without a pause."""

    first: int
    """The index of the first event in the batch."""
    events: list[Event]
    addresses: Sequence[str]

    def without(self, *others: Collection[str]) -> "Slice":
        """Return the same without some addresses."""
        left = self.addresses
        for some in others:
            if some:
                left = [one for one in left if one not in some]
        return Slice(self.first, self.events, left)


@dataclass(frozen=True, slots=True)
class Batch:
    """Events that are written to many channels."""

    events: list[Event]
    request_id: str | None
    tenant: Tenant | None
    """The tenant to whose channels alone it may be written; None if it may be any."""
    pace: Pace
    earlier_ids: dict[int, str] = field(default_factory=dict)
    """By the index of an event: the id that an earlier batch with the same key gave it."""

    def slices(self, addresses: Sequence[str]) -> Iterator[Slice]:
        """Divide the work. Each channel gets its events in their order."""
        at_once = max(1, SLICE // (ADDRESS_WORK + EVENT_WORK * len(self.events)))
        starts = range(0, len(self.events), RUN_EVENTS)
        parts = [(first, self.events[first : first + RUN_EVENTS]) for first in starts]
        for begin in range(0, len(addresses), at_once):
            some = addresses[begin : begin + at_once]
            for first, events in parts:
                yield Slice(first, events, some)

    def lines(self, part: Slice) -> list[Line]:
        """Return the events of a slice one by one."""
        numbers = range(part.first, part.first + len(part.events))
        return [self.line(address, number) for address in part.addresses for number in numbers]

    def line(self, address: str, number: int) -> Line:
        """Return the event at an index for one channel."""
        return Line(number, address, self.events[number], self.key(number))

    def key(self, index: int) -> str | None:
        """Return the idempotency key of one event of the batch: the request id and the index.

        The space between them makes it different from the keys of all other writes, because a
        client cannot send a space in a request id.
        """
        return None if self.request_id is None else f"{self.request_id} {index}"

    def refused(self, first: int, error: MegaphoneError) -> "Refused":
        """Return that a channel refused the event at index `first`, so that all later ones count as
        refused too."""
        is_timeout = isinstance(error, WriteTimeout)
        is_unclear = isinstance(error, StoreUnavailable) and error.may_have_happened
        return Refused(first, error.code, SKIPPED if is_timeout else error.code, is_unclear)

    def cost_of(self, refused: Iterable["Refused"]) -> tuple[int, int]:
        """Return how many events some channels refused for certain, and how many bytes those
        have."""
        sizes = [0]
        """How many bytes the last events have together, by how many these are."""
        for event in reversed(self.events):
            sizes.append(sizes[-1] + len(event.body))
        events = [len(self.events) - one.first for one in refused if not one.is_unclear]
        return sum(events), sum(sizes[count] for count in events)

    def accepted(self, index: int, event_id: str) -> None:
        """Note that a channel has the event at an index, under this id."""
        if event_id != self.events[index].id:
            self.earlier_ids.setdefault(index, event_id)

    async def written(
        self, addresses: Sequence[str], refused: Mapping[str, "Refused"]
    ) -> BatchWritten:
        """Return the result of the batch, by what some of its channels have refused."""
        failures: list[BatchFailure] = []
        accepted = 0
        for address in addresses:
            rest = refused.get(address)
            if rest is None:
                accepted = len(self.events)
            else:
                accepted = max(accepted, rest.first)
                await self._add_failures(address, rest, failures)
        return BatchWritten(self.events, accepted, self.earlier_ids, failures)

    async def _add_failures(
        self, address: str, refused: "Refused", failures: list[BatchFailure]
    ) -> None:
        """Add one failure for each event that a channel refused to `failures`, in slices."""
        reason = refused.reason
        for index in range(refused.first, len(self.events)):
            failures.append(BatchFailure(address, index, reason))
            reason = refused.reason_of_rest
            await self.pace.work(ANSWER_WORK)


@dataclass(frozen=True, slots=True)
class Refused:
    """The events of a batch that one channel did not accept: one event and all after it."""

    first: int
    """The index of the first of these events."""
    reason: str
    reason_of_rest: str
    is_unclear: bool = False
    """Whether the channel may have accepted them, because the store failed in between."""


def failure_of(error: MegaphoneError) -> WriteFailure:
    return WriteFailure(error.code, str(error))


def outcome_of(result: Stored | MegaphoneError) -> str | WriteFailure:
    return result.event_id if isinstance(result, Stored) else failure_of(result)


def refuse_long(addresses: Sequence[str]) -> None:
    """Raises: BadRequest, for an address that is too long, because the response would repeat it for
    each event."""
    for index, address in enumerate(addresses):
        if len(address) > MAX_ADDRESS_LENGTH:
            raise BadRequest(
                f"address {index} has {len(address)} characters; no address has more than"
                f" {MAX_ADDRESS_LENGTH}"
            )
