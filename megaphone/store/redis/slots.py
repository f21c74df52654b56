"""The slots of a cluster: which one a key is in, and which master has it."""

import random
from binascii import crc_hqx
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import count
from typing import Any

from megaphone.model import Endpoint

SLOTS = 16_384
REMEMBERED = 5_000
"""Of how many keys the slots are remembered, because most channels are used again."""
UNKNOWN_HOST = b"?"
MANY = 1_000_000
EPOCH_FIELD = 6


@lru_cache(REMEMBERED)
def slot_of(key: str) -> int:
    """Return the slot of a key: that of its hash tag, if it has one."""
    data = key.encode()
    begin = data.find(b"{")
    end = data.find(b"}", begin + 1)
    if begin >= 0 and end > begin + 1:
        data = data[begin + 1 : end]
    return crc_hqx(data, 0) % SLOTS


class SlotMap:
    """Which master has which slots, as a server of the cluster sees it."""

    def __init__(
        self,
        ranges: Sequence[tuple[int, int, Endpoint]],
        epochs: Mapping[Endpoint, int] | None = None,
        replicas: Mapping[Endpoint, Sequence[Endpoint]] | None = None,
    ) -> None:
        """A range has a first slot, a last slot and their master. The epochs are those in which the
        masters got slots last, as far as the server tells them: if two masters claim a slot, the
        cluster follows the one with the higher epoch."""
        self._ranges = ranges
        self._epochs = epochs or {}
        self._replicas = replicas or {}
        self._owners: dict[int, Endpoint] = {}
        self.masters: Sequence[Endpoint] = list(dict.fromkeys(place for _, _, place in ranges))
        """The masters that have slots."""
        self._masters_without_notes = self.masters
        for first, last, place in ranges:
            self._owners.update(dict.fromkeys(range(first, last + 1), place))

    @classmethod
    def read(
        cls, answer: Any, asked: Endpoint, epochs: Mapping[bytes, int] | None = None
    ) -> "SlotMap":
        """Read the answer to CLUSTER SLOTS. A server that does not name its own host has the one at
        which it was asked. The epochs are by the ids of the servers."""
        ranges, known, replicas = [], {}, {}
        for first, last, master, *others in answer:
            if (place := _place_of(master, asked)) is not None:
                ranges.append((first, last, place))
                places = (_place_of(one, asked) for one in others)
                replicas[place] = [one for one in places if one is not None]
                if epochs and master[2] in epochs:
                    known[place] = epochs[master[2]]
        return cls(sorted(ranges, key=lambda one: one[0]), known, replicas)

    def owner_of(self, slot: int) -> Endpoint | None:
        """Return the master of a slot, None if nobody has it."""
        return self._owners.get(slot)

    def replicas_of(self, master: Endpoint) -> Sequence[Endpoint]:
        """Return the servers of which one may replace a master."""
        return self._replicas.get(master, ())

    def note(self, slot: int, owner: Endpoint) -> None:
        """Note that a slot has another master."""
        self._ranges = [*self._ranges, (slot, slot, owner)]
        self._owners[slot] = owner
        if owner not in self.masters:
            self.masters = [*self.masters, owner]

    def is_as(self, other: "SlotMap") -> bool:
        """Return whether another map surely says the same."""
        return self._ranges == other._ranges

    def is_older_than(self, other: "SlotMap") -> bool:
        """Return whether this map names a master that another one has replaced since."""
        if self.is_as(other):
            return False
        for slot, owner in self._owners.items():
            later = other._owners.get(slot, owner)
            if later != owner and self._epoch_of(owner) < other._epoch_of(later):
                return True
        return False

    def _epoch_of(self, owner: Endpoint) -> int:
        return self._epochs.get(owner, 0)

    def replaced_until(self, later: "SlotMap") -> list[Endpoint]:
        """Return the masters that have no slot later, because servers that were no masters have
        taken over. Slots that move go to a server that is a master already."""
        return [
            place
            for place, slots in self.lost_until(later).items()
            if place not in later.masters
            and any(later.owner_of(slot) not in self._masters_without_notes for slot in slots)
        ]

    def lost_until(self, later: "SlotMap") -> dict[Endpoint, list[int]]:
        """Return the slots that have another master later, by the masters that they have here."""
        lost: dict[Endpoint, list[int]] = {}
        for slot, owner in self._owners.items():
            if later.owner_of(slot) not in (None, owner):
                lost.setdefault(owner, []).append(slot)
        return lost

    @property
    def is_complete(self) -> bool:
        return len(self._owners) == SLOTS

    def tag_of(self, owner: Endpoint) -> str:
        """Return the hash tag of any key that a master has. The master must have slots."""
        start = random.randrange(MANY)
        tags = map(str, count(start))
        return next(tag for tag in tags if self._owners.get(slot_of(tag)) == owner)


def _place_of(server: Sequence[Any], asked: Endpoint) -> Endpoint | None:
    """Return where a server is, which has its host and port first; None if its host is unknown."""
    host, port, *_ = server
    if host == UNKNOWN_HOST:
        return None
    return Endpoint(host.decode() if host else asked.host, port)


def epochs_in(nodes: bytes | str) -> dict[bytes, int]:
    """Read the answer to CLUSTER NODES. Returns: the config epochs of the servers, by their ids."""
    data = nodes.encode() if isinstance(nodes, str) else nodes
    fields = (line.split(b" ") for line in data.splitlines())
    return {one[0]: int(one[EPOCH_FIELD]) for one in fields if len(one) > EPOCH_FIELD}
