"""What a node needs of its store: checked on each new connection, before anything is kept there."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace

from megaphone.errors import StoreUnavailable
from megaphone.store.redis.connection import Argument, Calls, Server
from megaphone.store.redis.errors import NoPermission, OutOfMemory, ReplyError, UnusableStore

NEVER_EVICTS = "noeviction"
RIGHTS = (
    "~{prefix}:*",
    "&{prefix}:*",
    "+ping",
    "+select",
    "+@hash",
    "+@list",
    "+@set",
    "+@sortedset",
    "+del",
    "+exists",
    "+get",
    "+pexpire",
    "+set",
    "+time",
    "+wait",
    "+info",
    "+fcall",
    "+function|load",
    "+publish",
    "+subscribe",
)
"""What the user of a node must be allowed, for `ACL SETUSER`."""
OPTIONAL_RIGHTS = ("+memory|usage",)
"""What it should be allowed, so that operators learn how many bytes a channel takes."""
CLUSTER_RIGHTS = ("+cluster|slots", "+cluster|nodes", "+asking")
"""What it must be allowed besides in a cluster."""


def rights_of(prefix: str, *, in_cluster: bool = False) -> str:
    """Return the rights that a node with a prefix needs, for `ACL SETUSER`."""
    rights = RIGHTS + OPTIONAL_RIGHTS + (CLUSTER_RIGHTS if in_cluster else ())
    return " ".join(rights).format(prefix=prefix)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a store says of itself, as far as it matters to those who write events."""

    server: Server
    max_memory: int
    """0 if there is no limit."""
    used_memory: int
    has_aof: bool
    append_fsync: str | None
    """When the AOF goes to the disk: always, everysec or no. None if the store does not say."""
    has_snapshots: bool | None
    """None if the store does not say."""
    replicas: int
    """How many replicas are connected."""
    masters: int = 1
    """Of how many masters together this is said."""

    @property
    def in_cluster(self) -> bool:
        return self.server.mode == "cluster"

    @property
    def kind(self) -> str:
        if self.in_cluster:
            return f"{self.server}, cluster of {count(self.masters, 'master')}"
        return str(self.server)

    @property
    def replication(self) -> str:
        return count(self.replicas, "replica") + (" each" if self.in_cluster else "")

    @property
    def persistence(self) -> str:
        if self.has_aof:
            return f"AOF {self.append_fsync}" if self.append_fsync else "AOF"
        if self.has_snapshots is None:
            return "no AOF"
        return "snapshots only" if self.has_snapshots else "no persistence"

    @property
    def is_on_disk_at_once(self) -> bool:
        """Whether an answer means that the master has written to its disk."""
        return self.has_aof and self.append_fsync == "always"

    def must_have(self, wait_replicas: int) -> str:
        """Return which servers and disks have an event when its writer gets 201."""
        replicas = count(wait_replicas, "replica") if wait_replicas else ""
        if self.is_on_disk_at_once:
            return " and ".join(filter(None, ("the master's disk", replicas)))
        return replicas or "the master"

    def line(self, wait_replicas: int) -> str:
        """Return what the log of a node says of its store."""
        when = f"201 after {self.must_have(wait_replicas)}"
        return f"store {self.kind}, {self.persistence}, {self.replication}, {when}"


def count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


async def examine(calls: Calls, server: Server, prefix: str) -> Facts:
    """Ask a master what it is, and refuse one that would lose events or forbid what is needed.

    Raises: UnusableStore, with one line that says what to do; StoreUnavailable.
    """
    await _check_rights(calls, prefix, in_cluster=server.mode == "cluster")
    memory = await _info(calls, "memory")
    policy = memory.get("maxmemory_policy", NEVER_EVICTS)
    if policy != NEVER_EVICTS:
        raise UnusableStore(
            f"the store removes keys when its memory is full (maxmemory-policy {policy}), and"
            f" events would be lost: set maxmemory-policy to {NEVER_EVICTS} there"
        )
    persistence = await _info(calls, "persistence")
    replication = await _info(calls, "replication")
    snapshots = await _configured(calls, "save")
    return Facts(
        server=server,
        max_memory=int(memory.get("maxmemory", "0")),
        used_memory=int(memory.get("used_memory", "0")),
        has_aof=persistence.get("aof_enabled") == "1",
        append_fsync=await _configured(calls, "appendfsync"),
        has_snapshots=None if snapshots is None else bool(snapshots),
        replicas=int(replication.get("connected_slaves", "0")),
    )


def together(masters: Sequence[Facts]) -> Facts:
    """Return what holds for all masters: the least of what any of them promises."""
    weakest = min(masters, key=lambda one: (one.is_on_disk_at_once, one.has_aof))
    return replace(
        weakest,
        max_memory=sum(one.max_memory for one in masters),
        used_memory=sum(one.used_memory for one in masters),
        replicas=min(one.replicas for one in masters),
        masters=len(masters),
    )


async def _check_rights(calls: Calls, prefix: str, *, in_cluster: bool) -> None:
    """Try every command that the node or its functions will need, on a key of no other use. In a
    cluster another master may have that key; but the user's rights are checked before."""
    key = f"{prefix}:check:{secrets.token_hex(8)}"
    commands = _commands(key) + ([("ASKING",)] if in_cluster else [])
    tried = [(command, calls.call(*command)) for command in commands]
    refused: NoPermission | None = None
    name = ""
    for command, future in tried:
        try:
            await future
        except NoPermission as error:
            if refused is None:
                refused, name = error, str(command[0])
        except StoreUnavailable as error:
            if error.may_have_happened:  # the connection is over
                raise
        except (ReplyError, OutOfMemory):
            pass  # of no account here: a command that is allowed may fail for want of memory
    if refused is not None:
        what = _what_is_refused(str(refused), name, prefix)
        rights = rights_of(prefix, in_cluster=in_cluster)
        raise UnusableStore(f"the store's user may not {what}: allow it {rights}")


def _what_is_refused(text: str, name: str, prefix: str) -> str:
    if "the keys" in text or "a key" in text:
        return f"use keys that begin with {prefix}: by {name}"
    if "the channels" in text or "a channel" in text:
        return f"use channels that begin with {prefix}: by {name}"
    return f"use {name}"


def _commands(key: str) -> list[tuple[Argument, ...]]:
    """Return one harmless call of every command that a node needs. They leave nothing behind."""
    return [
        ("PING",),
        ("TIME",),
        ("INFO", "server"),
        ("HSET", key, "f", "v"),
        ("PEXPIRE", key, 60_000),
        ("HSETNX", key, "f", "v"),
        ("HGET", key, "f"),
        ("HGETALL", key),
        ("EXISTS", key),
        ("HDEL", key, "f"),
        ("RPUSH", key, "v"),
        ("LPOS", key, "v"),
        ("LINDEX", key, 0),
        ("LLEN", key),
        ("LRANGE", key, 0, 0),
        ("LREM", key, 1, ""),
        ("LTRIM", key, 0, 0),
        ("LPOP", key),
        ("ZADD", key, 1, "m"),
        ("ZCARD", key),
        ("ZRANGE", key, 0, 0),
        ("ZRANGEBYSCORE", key, 0, 0),
        ("ZREM", key, "m"),
        ("SADD", key, "m"),
        ("SMEMBERS", key),
        ("DEL", key),
        ("SET", key, "v", "PX", 60_000),
        ("GET", key),
        ("DEL", key),
        ("WAIT", 0, 1),
        ("PUBLISH", key, ""),
        # These two do nothing, because there is no such function, and no such library can be.
        ("FCALL", "megaphone_check", 1, key),
        ("FUNCTION", "LOAD", ""),
    ]


async def _info(calls: Calls, section: str) -> dict[str, str]:
    answer = await calls.call("INFO", section)
    text = answer.decode() if isinstance(answer, bytes) else str(answer)
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)


async def _configured(calls: Calls, name: str) -> str | None:
    """Return an option of the server; None if it keeps its options to itself, as servers that
    somebody else runs often do."""
    try:
        answer = await calls.call("CONFIG", "GET", name)
    except ReplyError:
        return None
    if isinstance(answer, list):
        answer = dict(zip(answer[::2], answer[1::2], strict=True))
    value = answer.get(name.encode())
    return value.decode() if isinstance(value, bytes) else None
