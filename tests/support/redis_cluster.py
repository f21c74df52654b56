"""A cluster of Redis or Valkey servers as child processes, whose slots can be moved."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import pairwise
from typing import Any

import hiredis

from megaphone.store.redis.slots import SLOTS
from megaphone.store.redis.url import StoreUrl
from tests.support.ports import free_port
from tests.support.redis_server import RedisServer, any_kind, redis_server

NODE_TIMEOUT_MS = 1_000
WITHIN_S = 30.0
AT_ONCE = 10


class RedisCluster:
    """A running cluster. Its calls block, so they are for short things."""

    def __init__(self, servers: Sequence[RedisServer]) -> None:
        self.servers = list(servers)

    @property
    def text_url(self) -> str:
        places = ",".join(f"127.0.0.1:{server.port}" for server in self.servers)
        return f"redis+cluster://{places}"

    @property
    def url(self) -> StoreUrl:
        return StoreUrl.parse(self.text_url)

    @property
    def masters(self) -> list[RedisServer]:
        """The servers that live and are masters."""
        return [one for one in self.servers if is_alive(one) and role_of(one) == "master"]

    def form(self, masters: int) -> None:
        """Make a cluster of the servers: the first are masters, each of the others replicates one
        of them."""
        first = self.servers[:masters]
        edges = [SLOTS * number // masters for number in range(masters + 1)]
        for server, (begin, end) in zip(first, pairwise(edges), strict=True):
            server.call("CLUSTER", "ADDSLOTSRANGE", begin, end - 1)
        for number, server in enumerate(self.servers, 1):
            server.call("CLUSTER", "SET-CONFIG-EPOCH", number)
            if server is not first[0]:
                self._meet(server)
        eventually(lambda: all(self._knows_all(one) for one in self.servers))
        for number, server in enumerate(self.servers[masters:]):
            server.call("CLUSTER", "REPLICATE", id_of(first[number % masters]))
        eventually(lambda: all(is_ready(one) for one in self.servers))

    def add(self, server: RedisServer) -> None:
        """Let a server join, as a master without slots."""
        self.servers.append(server)
        self._meet(server)
        eventually(lambda: all(self._knows_all(one) for one in self.servers))
        eventually(lambda: is_ready(server))

    def _meet(self, server: RedisServer) -> None:
        place = ("127.0.0.1", server.port, server.options["cluster_port"])
        self.servers[0].call("CLUSTER", "MEET", *place)

    def _knows_all(self, server: RedisServer) -> bool:
        nodes = server.call("CLUSTER", "NODES").decode().splitlines()
        known = [one for one in nodes if " connected" in one and "handshake" not in one]
        return len(known) >= len(self.servers)

    def owner_of(self, slot: int) -> RedisServer:
        """Return the master of a slot."""
        ports = {server.port: server for server in self.servers}
        for first, last, [_, port, *_], *_ in self.masters[0].call("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return ports[port]
        raise AssertionError(f"nobody has the slot {slot}")

    def call(self, key: str, *args: bytes | str | int) -> Any:
        """Make a call at the master of a key."""
        [slot] = [int(self.masters[0].call("CLUSTER", "KEYSLOT", key))]
        return self.owner_of(slot).call(*args)

    def flush(self) -> None:
        for server in self.masters:
            server.flush()

    def move(self, slot: int, target: RedisServer, pause_s: float = 0.0) -> None:
        """Move a slot with its keys to another master, one key after the other, as `redis-cli
        --cluster reshard` does. It waits a little before each."""
        source = self.owner_of(slot)
        begin_move(slot, source, target)
        while keys := source.call("CLUSTER", "GETKEYSINSLOT", slot, 1):
            time.sleep(pause_s)
            migrate(keys[0], source, target)
        time.sleep(pause_s)
        self.end_move(slot, target)

    def end_move(self, slot: int, target: RedisServer) -> None:
        for server in (target, *self.masters):
            server.call("CLUSTER", "SETSLOT", slot, "NODE", id_of(target))


def begin_move(slot: int, source: RedisServer, target: RedisServer) -> None:
    target.call("CLUSTER", "SETSLOT", slot, "IMPORTING", id_of(source))
    source.call("CLUSTER", "SETSLOT", slot, "MIGRATING", id_of(target))


def migrate(key: bytes, source: RedisServer, target: RedisServer) -> None:
    source.call("MIGRATE", "127.0.0.1", target.port, key, 0, 5_000)


def id_of(server: RedisServer) -> str:
    identity: bytes = server.call("CLUSTER", "MYID")
    return identity.decode()


def role_of(server: RedisServer) -> str:
    return server.info("replication")["role"]


def is_alive(server: RedisServer) -> bool:
    return server.process is not None and server.process.poll() is None


def is_ready(server: RedisServer) -> bool:
    """Return whether a server takes part in the cluster, a replica with the data of its master."""
    if b"cluster_state:ok" not in server.call("CLUSTER", "INFO"):
        return False
    replication = server.info("replication")
    return replication["role"] == "master" or replication["master_link_status"] == "up"


def eventually(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + WITHIN_S
    while True:
        with suppress(OSError, hiredis.ReplyError):
            if condition():
                return
        assert time.monotonic() < until, "it never came to that"
        time.sleep(0.02)


@contextmanager
def redis_cluster(
    kind: str | None = None, *, masters: int = 3, replicas: int = 0, **options: Any
) -> Iterator[RedisCluster]:
    """Run a cluster with so many servers of each role. It is stopped at the end."""
    kind = kind or any_kind()
    with ExitStack() as stack:
        servers = [
            stack.enter_context(cluster_server(kind, **options)) for _ in range(masters + replicas)
        ]
        cluster = RedisCluster(servers)
        cluster.form(masters)
        yield cluster


@contextmanager
def cluster_server(kind: str, **options: Any) -> Iterator[RedisServer]:
    """Run a server that may join a cluster."""
    of_cluster = {
        "cluster_enabled": "yes",
        "cluster_port": free_port(),
        "cluster_node_timeout": NODE_TIMEOUT_MS,
    }
    with redis_server(kind, **of_cluster, **options) as server:
        yield server
