"""Scenarios for runs in which channels move. Each is drawn from its seed."""

import random
from dataclasses import dataclass
from enum import Enum
from typing import Any

from megaphone.model import DEFAULT_IN_FLIGHT
from tests.support.checker import Kind
from tests.support.move_ledger import LARGEST_BYTES
from tests.support.move_readers import Plan

SMALLEST_CAPACITY, LARGEST_CAPACITY = 7, 100
WINDOW_S = 0.3
DRAIN_TIMEOUT_S = 10.0


class Act(Enum):
    """One operation on the nodes."""

    DRAIN = "drain the node of the channels to another"
    DRAIN_ANOTHER = "drain another node"
    PIPE = "forward the agent to another node"
    CUT = "reset all connections between nodes"
    CLOSE = "close the links between two nodes for a while"
    DRAIN_CUT = "drain, and cut the links in the midst of it"
    DRAIN_KILL = "drain, and kill the target in the midst of it"
    KILL = "kill a node that has not the channels"
    EVICT = "stop the node of the channels, which moves them to its successor, and start it again"
    EVICT_EARLY = "stop the node of the channels while its successor is away for a moment"


USUAL_ACTS = (
    *(Act.DRAIN,) * 6,
    Act.DRAIN_ANOTHER,
    *(Act.PIPE,) * 2,
    *(Act.CUT,) * 2,
    Act.CLOSE,
    *(Act.DRAIN_CUT,) * 2,
    *(Act.EVICT,) * 2,
)
KILLING_ACTS = (*USUAL_ACTS, *(Act.KILL,) * 4, *(Act.DRAIN_KILL,) * 2, Act.EVICT_EARLY)


@dataclass(frozen=True, slots=True)
class Scenario:
    """The scenario of a seed."""

    seed: int
    is_slow: bool
    """Whether readers stay away for up to 10 s. Otherwise they stay away for up to 1 s, and
    everything else is ten times faster too."""
    in_processes: bool
    capacities: tuple[int, ...]
    events: int
    """The number of events of each writer."""
    largest_bytes: int
    with_keys: tuple[bool, ...]
    acts: tuple[Act, ...]
    write_timeout_s: float

    @classmethod
    def draw(cls, seed: int, *, in_processes: bool = False) -> "Scenario":
        rng = random.Random(f"moves-{seed}")
        is_slow = rng.random() < 0.2 and not in_processes
        capacity = draw_capacity(rng)
        differ = rng.random() < 0.2
        acts = KILLING_ACTS if in_processes or rng.random() < 0.35 else USUAL_ACTS
        return cls(
            seed=seed,
            is_slow=is_slow,
            in_processes=in_processes,
            capacities=tuple(draw_capacity(rng) if differ else capacity for _ in range(3)),
            events=rng.choice((12, 20, 20, 30)),
            largest_bytes=LARGEST_BYTES,
            with_keys=tuple(rng.random() < 0.8 for _ in range(4)),
            acts=tuple(rng.choice(acts) for _ in range(rng.randint(2, 6))),
            write_timeout_s=rng.choice((0.3, 2.0, 10.0)),
        )

    @property
    def name(self) -> str:
        return f"{self.seed}-processes" if self.in_processes else str(self.seed)

    def rng(self, purpose: str) -> random.Random:
        return random.Random(f"moves-{self.seed}-{purpose}")

    @property
    def pace_s(self) -> float:
        """How many seconds a second of the scenario takes."""
        return 1.0 if self.is_slow else 0.1

    def plan_of(self, kind: Kind) -> Plan:
        rng = self.rng(kind.value)
        return Plan(
            kind=kind,
            name=f"moves-{self.seed}-{kind.value}",
            window_s=WINDOW_S,
            cuts=rng.randint(2, 8),
            longest_away_s=10.0 * self.pace_s,
            takes_over=rng.random() < 0.4,
            acknowledge_every=rng.choice((1, 4, 10)),
            in_flight=rng.choice((DEFAULT_IN_FLIGHT, DEFAULT_IN_FLIGHT, 30)),
        )

    def settings_of(self, node: int) -> dict[str, Any]:
        return {
            "poll_duration_millis": round(WINDOW_S * 1000),
            "buffer_capacity": self.capacities[node],
            "write_timeout_millis": round(self.write_timeout_s * 1000),
            "drain_timeout_secs": DRAIN_TIMEOUT_S,
        }


def draw_capacity(rng: random.Random) -> int:
    ratio = LARGEST_CAPACITY / SMALLEST_CAPACITY
    return int(SMALLEST_CAPACITY * ratio ** rng.random())
