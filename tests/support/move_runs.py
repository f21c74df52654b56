"""Seeded runs on three nodes: channels move, under faults, while clients write and read.

A run has three channels of one agent with one reader of each kind, four writers that each write in
a different way, and a plan of what is done to the nodes and the links between them. Every random
choice comes from the seed. The timing of the sockets does not. So a seed repeats a scenario, but
not the same interleaving.
"""

import asyncio
import itertools
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from megaphone.app import App
from tests.support.checker import Fault, Kind, Verdict, judge
from tests.support.cluster import Cluster, Host, HostHere, HostProcess, cluster_of
from tests.support.move_desks import (
    Addresses,
    Desk,
    GrpcDesk,
    HttpDesk,
    Lines,
    PublishDesk,
    Shared,
)
from tests.support.move_ledger import Ledger
from tests.support.move_readers import MovesSeen, Reader, Tamper
from tests.support.move_scenarios import Scenario
from tests.support.move_troubles import Troubles
from tests.support.move_writers import Writer
from tests.support.raw_http import post_once

KINDS = (Kind.PLAIN, Kind.RESUMING, Kind.ACKNOWLEDGING)
BATCH_SHARE = 0.8
"""The share of the largest request body that the messages of one call may have together."""
RUN_AT_MOST_S = 100.0


@dataclass(slots=True)
class Finished:
    """A finished run."""

    scenario: Scenario
    ledger: Ledger
    verdicts: list[Verdict] = field(default_factory=list)
    """The verdict on each reader."""
    nodes_verdict: Verdict = field(default_factory=Verdict)
    """The wrong counts of the nodes."""
    happened: list[str] = field(default_factory=list)
    failure: str | None = None
    """The reason why the run did not finish; None if it did."""
    died: bool = False
    seconds: float = 0.0

    @property
    def is_as_promised(self) -> bool:
        return self.failure is None and not self.found()

    def found(self) -> Counter[Fault]:
        """Return how often each fault occurred. For a run that did not finish, some may be
        missing."""
        if self.failure is not None:
            return Counter()
        every = [*self.verdicts, self.nodes_verdict]
        return Counter(anomaly.fault for verdict in every for anomaly in verdict.anomalies)

    def explanation(self) -> str:
        """Describe what went wrong, and how to repeat it."""
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


def writers_of(shared: Shared, scenario: Scenario) -> list[Writer]:
    """Return one writer for each way to write."""
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
    """Create one channel for each reader, all of the agent of one node."""
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
    """Do a run and judge it. `sabotage` alters the nodes, and `tamper` alters what readers get."""
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
    except Exception as error:
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
    """Compare the losses that the nodes count with the losses that the judge found.

    The count of a node that was killed or stopped is gone.
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
    """Do runs, several at a time."""
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
    """Return one line that sums up some runs."""
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
