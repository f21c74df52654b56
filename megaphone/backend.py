"""What stands behind the faces of a node: the store, the agents, and what moves them.

There are two kinds of nodes. One keeps its channels in memory, and can replicate and hand over its
agents to other nodes. The other has its channels in a store that many nodes share.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from megaphone.cluster.incoming import IncomingPipes
from megaphone.cluster.moves import Drains
from megaphone.cluster.outgoing import OutgoingPipes
from megaphone.cluster.ports import Incoming
from megaphone.cluster.shared import Unreplicated
from megaphone.core import ports
from megaphone.core.addresses import AddressKey
from megaphone.core.agents import Agents
from megaphone.core.broker import Broker
from megaphone.core.budget import Budget
from megaphone.core.peers import PeerLimits
from megaphone.core.ports import OnRemoved, Store, Tracing
from megaphone.core.tenants import Tenants
from megaphone.model import agent_of
from megaphone.observe.metrics import Metrics
from megaphone.observe.webhooks import Webhooks
from megaphone.settings import MEMORY, Settings
from megaphone.store.errors import UnusableStore
from megaphone.store.memory import MemoryStore

if TYPE_CHECKING:
    import grpc

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Backend:
    """What stands behind the faces of a node."""

    store: Store
    agents: Agents
    broker: Broker
    incoming: Incoming
    pipes: ports.Pipes
    drains: ports.Drains
    move_away: Callable[[], Awaitable[None]]
    """Move the agents of this node to the drain target, and accept no more from other nodes."""
    complete_pipes: Callable[[], Awaitable[None]]
    """Send what the pipes have not sent yet. No more requests may arrive."""


@asynccontextmanager
async def backend(
    settings: Settings,
    budget: Budget,
    tenants: Tenants,
    peers: PeerLimits,
    metrics: Metrics,
    webhooks: Webhooks,
    tracing: Tracing,
    for_tls: "Callable[[], grpc.ChannelCredentials] | None" = None,
) -> AsyncIterator[Backend]:
    """Build the backend that the settings name. Its store is closed at the end of the context.

    `for_tls` returns the certificate of this node for other nodes, if it has one.

    Raises: UnusableStore, when the store will not do; StoreUnavailable, when it does not answer.
    """
    if settings.store == MEMORY:
        kind = of_memory(settings, budget, tenants, peers, metrics, webhooks, tracing, for_tls)
    else:
        kind = of_shared_store(settings, budget, tenants, peers, metrics, webhooks, tracing)
    async with kind as built:
        yield built


@asynccontextmanager
async def of_memory(
    settings: Settings,
    budget: Budget,
    tenants: Tenants,
    peers: PeerLimits,
    metrics: Metrics,
    webhooks: Webhooks,
    tracing: Tracing,
    for_tls: "Callable[[], grpc.ChannelCredentials] | None",
) -> AsyncIterator[Backend]:
    """Build a node that keeps its channels in memory. They end with it, and webhooks report them,
    unless its agents have moved away."""
    agents = Agents(settings.agent_warmup_secs)
    await introduce(agents, settings)
    store = MemoryStore(
        limits=settings.channel_limits(),
        max_channels=settings.max_channels,
        write_timeout_s=settings.write_timeout_millis / 1000,
        budget=budget,
        on_removed=removals(agents, metrics, webhooks),
        on_evicted=metrics.events_lost,
    )
    broker = Broker(
        store=store,
        agents=agents,
        settings=settings,
        observer=metrics,
        tenants=tenants,
        peers=peers,
        tracing=tracing,
    )
    replication = store.replication
    incoming = IncomingPipes(
        store=store,
        replication=replication,
        agents=agents,
        settings=settings,
        observer=metrics,
        tenants=tenants,
    )
    pipes = OutgoingPipes(
        agents=agents,
        store=store,
        replication=replication,
        observer=metrics,
        nodes=settings.nodes,
        for_tls=for_tls,
    )
    drains = Drains(
        agents=agents,
        broker=broker,
        store=store,
        replication=replication,
        incoming=incoming,
        pipes=pipes,
        observer=metrics,
    )

    async def move_away() -> None:
        await drains.hand_over(
            settings.drain_target, settings.drain_timeout_secs, settings.drain_target_gone_secs
        )
        incoming.refuse_pipes("this node is shutting down")
        await incoming.aclose()

    try:
        yield Backend(store, agents, broker, incoming, pipes, drains, move_away, pipes.aclose)
    finally:
        await store.aclose()


@asynccontextmanager
async def of_shared_store(
    settings: Settings,
    budget: Budget,
    tenants: Tenants,
    peers: PeerLimits,
    metrics: Metrics,
    webhooks: Webhooks,
    tracing: Tracing,
) -> AsyncIterator[Backend]:
    """Build a node whose channels are in a shared store, and stay there when the node ends."""
    # Not above, because a node with its channels in memory does not need the packages for it.
    try:
        from megaphone.store.redis.errors import ReplyError
        from megaphone.store.redis.store import RedisStore
        from megaphone.store.redis.url import StoreUrl
    except ImportError as error:
        raise UnusableStore(str(error)) from None
    store = RedisStore(
        StoreUrl.of_settings(settings.store, settings.store_password_file),
        prefix=settings.store_prefix,
        limits=settings.channel_limits(),
        max_channels=settings.max_channels,
        write_timeout_s=settings.write_timeout_millis / 1000,
        on_removed=reported(metrics, webhooks),
        wait_replicas=settings.store_wait_replicas,
    )
    try:
        await store.start()
    except ReplyError as error:
        raise UnusableStore(f"the store refuses what is needed: {error}") from None
    assert store.facts is not None
    log.info("%s", store.facts.line(settings.store_wait_replicas))

    def described() -> list[tuple[dict[str, object], int]]:
        facts = store.facts  # they are new after each connection
        assert facts is not None
        labels = {
            "server": facts.server,
            "persistence": facts.persistence,
            "wait_replicas": settings.store_wait_replicas,
        }
        return [(labels, 1)]

    counts = store.link.counts
    metrics.add("store_info", described)
    metrics.add("store_channels", lambda: store.counted)
    metrics.add("store_call_seconds", lambda: counts.seconds)
    metrics.add(
        "store_errors_total",
        lambda: [({"kind": kind}, count) for kind, count in counts.errors.items()],
    )
    metrics.add("store_reconnects_total", lambda: counts.reconnects)
    try:
        agents = Agents(settings.agent_warmup_secs, directory=store.directory)
        keys = agents.keys
        store.directory.on_other_key = lambda name, secret: keys.add(name, AddressKey(secret))
        await introduce(agents, settings)
        broker = Broker(
            store=store,
            agents=agents,
            settings=settings,
            observer=metrics,
            tenants=tenants,
            peers=peers,
            tracing=tracing,
        )
        none = Unreplicated()
        yield Backend(store, agents, broker, none, none, none, nothing, nothing)
    finally:
        await store.aclose()


async def nothing() -> None:
    """Do nothing."""


async def introduce(agents: Agents, settings: Settings) -> None:
    """Give a node the agents of its settings."""
    now = asyncio.get_running_loop().time()
    for name, mode in settings.agent.items():
        await agents.introduce(name, mode, now)


def reported(metrics: Metrics, webhooks: Webhooks) -> OnRemoved:
    """Return a callback that counts removed channels and reports them to webhooks."""

    def removed(consumer_address: str, age_s: float, lost: int) -> None:
        metrics.channel_removed(age_s, lost)
        webhooks.channel_removed(consumer_address)

    return removed


def removals(agents: Agents, metrics: Metrics, webhooks: Webhooks) -> OnRemoved:
    """Return the same for a node with replicas. The events of a copy are not lost, because the
    source of the copy has and counts them."""
    report = reported(metrics, webhooks)

    def removed(consumer_address: str, age_s: float, lost: int) -> None:
        is_owned = agents.is_owned(agent_of(consumer_address))
        report(consumer_address, age_s, lost if is_owned else 0)

    return removed
