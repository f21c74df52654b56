"""Seeded runs on three nodes: channels move to and fro, under faults, while clients write and read.

A run has three channels of one agent, with a reader of each kind; four writers, of each way to
write; and a plan of what happens to the nodes and to the links between them meanwhile. All that is
drawn is drawn from the seed; what happens in between is up to the sockets. So a seed repeats a
scenario, not an interleaving.
"""

import asyncio
import itertools
import random
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from megaphone.app import App
from megaphone.model import DEFAULT_WINDOW
from tests.support.checker import Fault, Kind, Verdict, judge
from tests.support.cluster import Cluster, Host, HostHere, HostProcess, Member, another, cluster_of
from tests.support.move_ledger import LARGEST_BYTES, Ledger
from tests.support.move_readers import MovesSeen, Plan, Reader, Tamper
from tests.support.move_writers import (
    Addresses,
    Desk,
    GrpcDesk,
    HttpDesk,
    Lines,
    PublishDesk,
    Shared,
    Writer,
)
from tests.support.raw_http import post_once

KINDS = (Kind.PLAIN, Kind.RESUMING, Kind.ACKNOWLEDGING)
SMALLEST_CAPACITY, LARGEST_CAPACITY = 7, 100
BATCH_SHARE = 0.8
"""The part of the largest request body that the messages of one call may have together."""
WINDOW_S = 0.3
DRAIN_TIMEOUT_S = 3.0
RUN_AT_MOST_S = 100.0


class Act(Enum):
    """What happens to the nodes."""

    DRAIN = "drain the node of the channels to another"
    DRAIN_ANOTHER = "drain another node"
    PIPE = "forward the agent to another node"
    CUT = "reset all connections between nodes"
    CLOSE = "close the links between two nodes for a while"
    DRAIN_CUT = "drain, and cut the links in the midst of it"
    DRAIN_KILL = "drain, and kill the target in the midst of it"
    KILL = "kill a node that has not the channels"
    EVICT = "stop the node of the channels, which moves them to its successor, and start it again"


USUAL_ACTS = (
    *(Act.DRAIN,) * 6,
    Act.DRAIN_ANOTHER,
    *(Act.PIPE,) * 2,
    *(Act.CUT,) * 2,
    Act.CLOSE,
    *(Act.DRAIN_CUT,) * 2,
    *(Act.EVICT,) * 2,
)
KILLING_ACTS = (*USUAL_ACTS, *(Act.KILL,) * 4, *(Act.DRAIN_KILL,) * 2)


@dataclass(frozen=True, slots=True)
class Scenario:
    """What a seed stands for."""

    seed: int
    is_slow: bool
    """Whether readers are away for up to 10 s; else for up to one, and all else is as much
    faster."""
    in_processes: bool
    capacities: tuple[int, ...]
    events: int
    """Of each writer."""
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
        """How long a second of the scenario takes."""
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
            in_flight=rng.choice((DEFAULT_WINDOW, DEFAULT_WINDOW, 30)),
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


@dataclass(slots=True)
class Finished:
    """A run that is over."""

    scenario: Scenario
    ledger: Ledger
    verdicts: list[Verdict] = field(default_factory=list)
    """Of each reader."""
    nodes_verdict: Verdict = field(default_factory=Verdict)
    """Of what the nodes have counted."""
    happened: list[str] = field(default_factory=list)
    failure: str | None = None
    """Why it did not get to its end."""
    died: bool = False
    seconds: float = 0.0

    @property
    def is_as_promised(self) -> bool:
        return self.failure is None and not self.found()

    def found(self) -> Counter[Fault]:
        """Return how often there was which fault. Of a run that failed not all is known."""
        if self.failure is not None:
            return Counter()
        every = [*self.verdicts, self.nodes_verdict]
        return Counter(anomaly.fault for verdict in every for anomaly in verdict.anomalies)

    def explanation(self) -> str:
        """Say what went wrong, and how to see it again."""
        lines = [f"MOVES_SEED={self.scenario.name} {self.scenario} {self.failure or ''}"]
        lines += [f"  {one}" for one in self.happened]
        lines += [f"  {anomaly}" for anomaly in self.nodes_verdict.anomalies]
        for history, verdict in zip(self.ledger.histories, self.verdicts, strict=True):
            if not verdict.anomalies:
                continue
            lines.append(f"  the {history.kind.value} reader:")
            lines += [f"    {anomaly}" for anomaly in verdict.anomalies[:10]]
            for number, read in enumerate(history.reads):
                events = " ".join(f"{seen.writer}/{seen.number}" for seen in read.events)
                where = f"after {read.cursor}, recovered {read.recovered}"
                lines.append(f"    read {number}, {where}, {read.ending.value}: {events}")
        return "\n".join(lines)


# -- What happens to the nodes


class Troubles:
    """Does to a cluster what the scenario says, and notes it."""

    def __init__(
        self,
        cluster: Cluster,
        scenario: Scenario,
        agent: str,
        moves: MovesSeen,
        make_host: Callable[[], Host],
    ) -> None:
        self._cluster = cluster
        self._agent = agent
        self._scenario = scenario
        self._moves = moves
        self._make_host = make_host
        self._rng = scenario.rng("troubles")
        self._began = time.monotonic()
        self.happened: list[str] = []

    async def run(self) -> None:
        for act in self._scenario.acts:
            await asyncio.sleep(self._rng.uniform(0, 3.0) * self._scenario.pace_s)
            if self._cluster.is_gone.is_set():
                return
            owner = await self._owner()
            if owner is None:
                return
            await self._do(act, owner)
        await self._owner()

    async def _owner(self) -> Member | None:
        """Return the node of the channels; None if it has died with them."""
        owners = await self._cluster.owners_of(self._agent)
        if not owners:
            self._cluster.is_gone.set()
            self._note("the channels are gone")
            return None
        if len(owners) > 1:
            raise AssertionError(f"{len(owners)} nodes say that the agent is theirs")
        return owners[0]

    async def _do(self, act: Act, owner: Member) -> None:
        other = another(self._rng, self._cluster.members, owner)
        match act:
            case Act.DRAIN:
                await self._drain(owner, other)
            case Act.DRAIN_ANOTHER:
                await self._drain(other, another(self._rng, self._cluster.members, other))
            case Act.PIPE:
                answer = await self._cluster.pipe(self._agent, owner, other)
                self._note(f"pipe {owner.number} to {other.number}: {brief(answer)}")
            case Act.CUT:
                self._cut(self._cluster.members)
            case Act.CLOSE:
                await self._close(owner, other)
            case Act.DRAIN_CUT:
                await self._drain_under(owner, other, self._cut_soon(owner, other))
            case Act.DRAIN_KILL:
                await self._drain_under(owner, other, self._kill_soon(other))
            case Act.KILL:
                await self._kill(other)
            case Act.EVICT:
                await self._evict(owner)

    async def _drain(self, source: Member, target: Member) -> None:
        self._moves.begun += 1
        began = time.monotonic()
        last = await self._cluster.drain(source, target)
        self._moves.ended += 1
        took = time.monotonic() - began
        self._note(f"drain {source.number} to {target.number}: {brief(last)}, {took:.2f} s")

    async def _drain_under(self, source: Member, target: Member, trouble: Any) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._drain(source, target))
            group.create_task(trouble)

    def _cut(self, members: Iterable[Member]) -> None:
        for member in members:
            for link in member.feeds.values():
                link.cut()
        self._note("cut")

    async def _cut_soon(self, *members: Member) -> None:
        await asyncio.sleep(self._rng.uniform(0, 0.15))
        self._cut(members)

    async def _close(self, one: Member, other: Member) -> None:
        for link in self._cluster.links_between(one, other):
            link.close()
        self._note(f"closed between {one.number} and {other.number}")
        await asyncio.sleep(self._rng.uniform(0, 10.0) * self._scenario.pace_s)
        for link in self._cluster.links_between(one, other):
            await link.open()

    async def _kill_soon(self, victim: Member) -> None:
        await asyncio.sleep(self._rng.uniform(0, 0.15))
        await self._kill(victim)

    async def _kill(self, victim: Member) -> None:
        self._note(f"kill {victim.number}")
        await self._cluster.kill(victim)
        await asyncio.sleep(self._rng.uniform(0, 5.0) * self._scenario.pace_s)
        await self._cluster.start_again(victim, self._make_host())

    async def _evict(self, owner: Member) -> None:
        self._moves.begun += 1
        began = time.monotonic()
        await self._cluster.evict(owner)
        self._moves.ended += 1
        took = time.monotonic() - began
        has_arrived = bool(await self._cluster.owners_of(self._agent))
        what = "done" if has_arrived else "its channels are gone"
        self._note(f"evict {owner.number}: {what}, {took:.2f} s")
        if not has_arrived:
            if len(set(self._scenario.capacities)) == 1:
                raise AssertionError("a node was stopped, and its channels are not elsewhere")
            self._cluster.is_gone.set()
        await self._cluster.start_again(owner, self._make_host())

    def _note(self, what: str) -> None:
        self.happened.append(f"{time.monotonic() - self._began:6.2f} s  {what}")


def brief(answer: dict[str, Any]) -> str:
    if "code" in answer:
        return f"{answer['code']} {answer['message']}"
    return "done" if answer.get("done", True) else str(answer)


# -- Running


def writers_of(shared: Shared, scenario: Scenario) -> list[Writer]:
    """Return a writer of each way to write."""
    rng = scenario.rng("desks")
    desks: list[Desk] = [
        HttpDesk(shared, 0, batches=False),
        GrpcDesk(shared, 1, batches=False),
        (HttpDesk if rng.random() < 0.5 else GrpcDesk)(shared, 2, batches=True),
        PublishDesk(shared, 3),
    ]
    return [
        Writer(name, desk, shared, scenario.rng(f"writer-{name}"), has_keys=has_keys)
        for name, (desk, has_keys) in enumerate(zip(desks, scenario.with_keys, strict=True))
    ]


async def write_all(shared: Shared, scenario: Scenario) -> None:
    largest = round(scenario.largest_bytes * BATCH_SHARE)
    pause_s = len(scenario.acts) * 2.0 * scenario.pace_s / scenario.events
    async with asyncio.TaskGroup() as group:
        for name, writer in enumerate(writers_of(shared, scenario)):
            several = name >= 2
            group.create_task(
                writer.write(
                    scenario.events,
                    pause_s,
                    largest if several else scenario.largest_bytes,
                    at_once=4 if several else 1,
                )
            )
    shared.ledger.all_written = True


@asynccontextmanager
async def shared_by_clients(cluster: Cluster, ledger: Ledger) -> AsyncIterator[Shared]:
    """Make a channel for each reader, all under the agent of one node."""
    first = cluster.members[0]
    lines = Lines()
    made = [await post_once(first.address, "/create", {}) for _ in ledger.histories]
    channels = [Addresses(one["producerAddress"], one["consumerAddress"]) for one in made]
    try:
        yield Shared(cluster, lines, ledger, first.name, channels)
    finally:
        await lines.aclose()


async def run(
    scenario: Scenario,
    *,
    sabotage: Callable[[App], None] = lambda app: None,
    tamper: Tamper = lambda read, history: read,
) -> Finished:
    """Do a run, and judge it. `sabotage` and `tamper` put faults into the nodes and before them."""
    ledger = Ledger(KINDS)
    finished = Finished(scenario, ledger)
    began = time.monotonic()

    def make_host() -> Host:
        return HostProcess() if scenario.in_processes else HostHere(sabotage)

    try:
        async with asyncio.timeout(RUN_AT_MOST_S), AsyncExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="moves-")))
            settings = [scenario.settings_of(node) for node in range(3)]
            hosts = [make_host() for _ in settings]
            cluster = await stack.enter_async_context(cluster_of(folder, hosts, settings))
            shared = await stack.enter_async_context(shared_by_clients(cluster, ledger))
            await do(finished, shared, make_host, tamper)
            if not finished.died:
                await compare_counts(finished, cluster)
    except (Exception, asyncio.CancelledError) as error:
        if (task := asyncio.current_task()) is not None and task.cancelling():
            raise
        finished.failure = f"{error!r} {getattr(error, 'exceptions', '')}"
    for history in ledger.histories:
        history.capacity = min(scenario.capacities)
        history.largest_capacity = max(scenario.capacities)
        history.redelivery_window_s = 10.0
        history.died = finished.died
    finished.verdicts = [judge(history) for history in ledger.histories]
    finished.seconds = time.monotonic() - began
    return finished


async def do(
    finished: Finished, shared: Shared, make_host: Callable[[], Host], tamper: Tamper
) -> None:
    scenario, cluster = finished.scenario, shared.cluster
    moves, calm = MovesSeen(), asyncio.Event()
    troubles = Troubles(cluster, scenario, shared.agent, moves, make_host)
    finished.happened = troubles.happened
    readers = [
        Reader(shared, channel, scenario.plan_of(kind), moves, tamper)
        for channel, kind in enumerate(KINDS)
    ]

    async def trouble() -> None:
        await troubles.run()
        calm.set()

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(trouble())
            group.create_task(write_all(shared, scenario))
            for reader in readers:
                group.create_task(reader.read_until_nothing_comes(calm))
    finally:
        finished.died = cluster.is_gone.is_set()
        for reader in readers:
            await reader.aclose()


async def compare_counts(finished: Finished, cluster: Cluster) -> None:
    """Hold the losses that the nodes count against those that there are.

    A node that was killed or stopped has taken its count with it.
    """
    counted = sum([await member.metric("messages_lost") for member in cluster.members])
    if counted > (unseen := finished.ledger.unseen()):
        what = f"{counted:g} events counted as lost, and only {unseen} were not read"
        finished.nodes_verdict.blame(Fault.MISCOUNTED, what)
    told = judge(finished.ledger.histories[KINDS.index(Kind.ACKNOWLEDGING)]).lost_told
    if counted < told and all(member.starts == 1 for member in cluster.members):
        what = f"{counted:g} events counted as lost, and an acknowledging reader lost {told}"
        finished.nodes_verdict.blame(Fault.MISCOUNTED, what)


async def run_all(
    scenarios: Iterable[Scenario],
    *,
    at_once: int,
    report: Callable[[Finished], None] = lambda finished: None,
) -> list[Finished]:
    """Do runs, some of them at once."""
    waiting = iter(scenarios)
    done: list[Finished] = []

    async def run_one_after_the_other() -> None:
        for scenario in waiting:
            finished = await run(scenario)
            report(finished)
            done.append(finished)

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(run_one_after_the_other())
    return done


def summary(runs: Sequence[Finished]) -> str:
    """Say in one line what came of some runs."""
    verdicts = list(itertools.chain.from_iterable(one.verdicts for one in runs))
    found = sum((one.found() for one in runs), Counter[Fault]())
    parts = {
        "runs": len(runs),
        "events": sum(v.taken for v in verdicts),
        "lost untold": found[Fault.LOST],
        "stored twice": found[Fault.STORED_TWICE],
        "out of order": found[Fault.OUT_OF_ORDER],
        "other faults": sum(n for fault, n in found.items() if fault not in HEADLINES),
        "runs that failed": sum(one.failure is not None for one in runs),
        "read once": sum(v.once for v in verdicts),
        "read again": sum(v.repeated for v in verdicts),
        "lost and told": sum(v.lost_told for v in verdicts),
        "lost as a plain reader may": sum(
            v.lost_beyond_ring + v.lost_at_window_end + v.lost_beyond_age for v in verdicts
        ),
        "lost with their node": sum(v.lost_with_node for v in verdicts),
    }
    happened = Counter(
        what.split()[2] + (" done" if ": done" in what else "")
        for one in runs
        for what in one.happened
    )
    return ", ".join(f"{count} {what}" for what, count in parts.items()) + (
        f"; {dict(sorted(happened.items()))}"
    )


HEADLINES = (Fault.LOST, Fault.STORED_TWICE, Fault.OUT_OF_ORDER)
