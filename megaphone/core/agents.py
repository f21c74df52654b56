"""The agents of a node: the names under which it owns channels, their modes, and their transitions.

A channel belongs to an agent, not to a node. Its addresses begin with the name of the agent, by
which proxies route, and its producer address is encrypted with the address key of the agent. So an
agent can be replicated to another node, which has it as a REPLICA with the same name and key.

The table `TRANSITIONS` has all changes of a mode:

                  pipe
    MASTER ───────────────▶ PIPED ◀─┐ pipe
      ▲  ▲      promote       │  └──┘
      │  └────────────────────┘  (no pipe is connected)
      │ promote
    REPLICA ──── pipe (no source is connected) ──▶ PIPED
      ▲  └─┐ replicate (with the same key)
      └────┘

When the last pipe of an agent is closed, the agent gets back the mode that it had before it became
PIPED (`take_back`).
"""

import asyncio
import random
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum, auto
from typing import Protocol

from megaphone.core.addresses import AddressKey
from megaphone.core.keys import KeyRing
from megaphone.errors import (
    AgentMoved,
    AgentNotFound,
    BadRequest,
    ChannelNotFound,
    MegaphoneError,
    NoAgentAvailable,
    WrongMode,
)
from megaphone.model import MAX_NAME_LENGTH, AgentMode

MOVED_REMEMBERED = 10_000
"""How many moved agents this node remembers, so that calls for them get MOVED."""
UNKNOWN_FOR_S = 1.0
"""For how long a node does not ask again for an agent that the directory does not know."""
UNKNOWN_REMEMBERED = 10_000
"""How many such names a node remembers."""
AGENT_NAME = re.compile(rf"[A-Za-z0-9_-]{{1,{MAX_NAME_LENGTH}}}")


class Step(Enum):
    """An action that may change the mode of an agent."""

    PIPE = auto()
    """This node starts to replicate the agent to another one."""
    REPLICATE = auto()
    """Another node starts to replicate the agent to this one."""
    PROMOTE = auto()
    """An operator or a source makes the agent a MASTER."""


TRANSITIONS = {
    (AgentMode.MASTER, Step.PIPE): AgentMode.PIPED,
    (AgentMode.PIPED, Step.PIPE): AgentMode.PIPED,
    (AgentMode.PIPED, Step.PROMOTE): AgentMode.MASTER,
    (AgentMode.REPLICA, Step.PIPE): AgentMode.PIPED,
    (AgentMode.REPLICA, Step.REPLICATE): AgentMode.REPLICA,
    (AgentMode.REPLICA, Step.PROMOTE): AgentMode.MASTER,
}
"""The mode after a step, by the mode before and the step. All other steps are refused."""

REFUSALS = {
    Step.PIPE: "cannot be replicated to another node",
    Step.REPLICATE: "cannot be replicated here by another node",
    Step.PROMOTE: "cannot be promoted",
}


@dataclass(slots=True, eq=False)
class Agent:
    """One agent. Only `Agents` changes its mode."""

    name: str
    mode: AgentMode
    since: datetime
    """When the agent got its present mode."""
    warm_at: float
    """The time of the event loop from which a MASTER takes new channels."""
    sources: int = field(default=0, init=False)
    """How many nodes replicate the agent to this one now."""
    pipes: int = field(default=0, init=False)
    """How many outgoing pipes of the agent are connected now."""
    before_pipe: AgentMode = field(default=AgentMode.MASTER, init=False)
    """The mode of the agent before it became PIPED."""
    was_replicated: bool = field(default=False, init=False)
    """Whether another node has ever replicated the agent to this one, with its key."""
    added_by_source: bool = field(default=False, init=False)
    """Whether a source, and not a setting or a command, has added the agent to this node."""

    @property
    def is_owned(self) -> bool:
        """Whether this node serves calls for the agent. A REPLICA is served by its source, also
        while this node passes its copies on to another node."""
        mode = self.before_pipe if self.mode is AgentMode.PIPED else self.mode
        return mode is not AgentMode.REPLICA

    def is_warming_up(self, now: float) -> bool:
        return self.mode is AgentMode.MASTER and now < self.warm_at

    def takes_channels(self, now: float) -> bool:
        """Return whether the agent takes new channels now."""
        return self.mode is AgentMode.MASTER and now >= self.warm_at


class AgentDirectory(Protocol):
    """The agents of all nodes that share a store, with their address keys.

    Each node of such a store serves all agents, so an agent is only a name with a key there.
    """

    async def add(self, name: str, secret: bytes) -> bytes:
        """Add an agent, unless it is there. Returns: the key that it has.

        Raises: StoreUnavailable.
        """

    async def secret_of(self, name: str) -> bytes | None:
        """Return the key of an agent; None if there is no such agent. Raises: StoreUnavailable."""


class Agents:
    """The agents of this node, by name."""

    def __init__(
        self,
        warmup_s: float,
        keys: KeyRing | None = None,
        directory: AgentDirectory | None = None,
    ) -> None:
        """`directory` has the agents of all nodes, if the nodes share a store."""
        self._warmup_s = warmup_s
        self._directory = directory
        self.keys = KeyRing() if keys is None else keys
        """The address keys of the agents."""
        self._agents: dict[str, Agent] = {}
        self._moving: dict[str, asyncio.Event] = {}
        """The agents in a cut-over, each with the event that is set at the end of the cut-over."""
        self.any_unsettled = directory is not None
        """Whether a call may have to wait until it is known whether this node serves its agent."""
        self._moved: dict[str, None] = {}
        """The agents that have moved to another node, oldest first."""
        self._own: set[str] = set()
        """The agents that settings or commands have given to this node."""
        self._unknown: dict[str, float] = {}
        """Names that the directory did not know, with the times at which to ask again."""

    async def introduce(self, name: str, mode: AgentMode, now: float) -> Agent:
        """Add an agent that settings or a command give to this node. Other nodes of a shared store
        may have it too. This node makes new channels only under such agents.

        Raises: BadRequest, when the name is not valid or in use; StoreUnavailable.
        """
        self.check_new(name)
        if self._directory is None:
            agent = self.add(name, mode, now)
        else:
            # First its key: calls for the agent may come while this node waits for it.
            secret = await self._directory.add(name, AddressKey.random().secret)
            agent = self._agents.get(name) or self.add(name, mode, now)
            self.keys.add(name, AddressKey(secret))
        self._own.add(name)
        return agent

    def check_new(self, name: str) -> None:
        """Check the name of an agent that settings or a command would give to this node.

        Raises: BadRequest, when the name is not valid, or they have given it already.
        """
        if checked_name(name) in self._own:
            raise BadRequest(f"agent {name} is on this node already")

    def add(self, name: str, mode: AgentMode, now: float) -> Agent:
        """Add an agent with a new key. A MASTER takes new channels once it is warm.

        Raises: BadRequest, when the name is not valid or in use.
        """
        checked_name(name)
        if name in self._agents:
            raise BadRequest(f"agent {name} is on this node already")
        agent = Agent(name, mode, datetime.now(UTC), now + self._warmup_s)
        self.keys.add(name, AddressKey.random())
        self._agents[name] = agent
        if mode is not AgentMode.REPLICA:
            self._moved.pop(name, None)
        return agent

    def served(self, name: str) -> Agent:
        """Return an agent, if this node serves its clients.

        An agent that has moved away and is replicated back to this node is not served before it is
        promoted. Clients that do not know of the move would otherwise write to the copies here,
        which no reader reads.

        Raises: AgentMoved; ChannelNotFound, when the agent is not on this node.
        """
        agent = self._agents.get(name)
        if agent is None or name in self._moved:
            raise self.error_of_absent(name)
        return agent

    def refuse_moved(self, name: str) -> None:
        """Raises: AgentMoved, when another node serves the agent."""
        if name in self._moved:
            raise self.error_of_absent(name)

    def get(self, name: str) -> Agent | None:
        return self._agents.get(name)

    def is_owned(self, name: str) -> bool:
        """Return whether this node owns the channels of an agent that is, or was, on this node."""
        agent = self._agents.get(name)
        return agent is None or agent.is_owned

    def named(self, name: str) -> Agent:
        """Return an agent. Raises: BadRequest, when the name is not valid; AgentNotFound."""
        if (agent := self._agents.get(name)) is None:
            checked_name(name)
            raise AgentNotFound(f"agent {name} is not on this node")
        return agent

    def pipe(self, name: str) -> Agent:
        """Make an agent PIPED, so that it takes no new channels from now on.

        Raises: AgentNotFound; WrongMode, while another node replicates the agent to this one.
        """
        agent = self.named(name)
        if agent.sources:
            raise WrongMode(
                f"agent {name} cannot be replicated while another node replicates it here"
            )
        before = agent.mode
        self._take(agent, Step.PIPE)
        if before is not AgentMode.PIPED:
            agent.before_pipe = before
        return agent

    def take_back(self, name: str) -> None:
        """Give a PIPED agent the mode that it had before, because its last pipe was closed."""
        agent = self.named(name)
        agent.mode, agent.since = agent.before_pipe, datetime.now(UTC)

    def replicate(self, name: str, secret: bytes) -> Agent:
        """Return the agent that another node starts to replicate, and add it if it is not here.

        A REPLICA that is here already must have the same key, unless no node has replicated it to
        this one before.

        Raises: BadRequest, when the name or the key is not valid; WrongMode, when the agent is
            MASTER or PIPED here, or has another key here.
        """
        key = AddressKey(secret)
        if (agent := self._agents.get(name)) is None:
            agent = self.add(name, AgentMode.REPLICA, now=0.0)
            agent.added_by_source = True
        self._check(agent, Step.REPLICATE)
        if agent.was_replicated and self.keys.of(name).secret != secret:
            raise WrongMode(f"agent {name} has another key here: two nodes use the same name")
        if not agent.was_replicated:
            self.keys.add(name, key)
            agent.was_replicated = True
        return agent

    def promote(self, name: str, now: float) -> Agent:
        """Make an agent a MASTER. It is warm at once, because proxies know its name already.

        Raises: AgentNotFound; WrongMode, when it is a MASTER already, or its pipe is connected.
        """
        agent = self.named(name)
        if agent.pipes:
            raise WrongMode(f"agent {name} cannot be promoted while its pipe is connected")
        self._take(agent, Step.PROMOTE)
        self._moved.pop(name, None)
        agent.warm_at = now
        return agent

    def _take(self, agent: Agent, step: Step) -> None:
        self._check(agent, step)
        mode = TRANSITIONS[agent.mode, step]
        if mode is not agent.mode:
            agent.mode, agent.since = mode, datetime.now(UTC)

    def _check(self, agent: Agent, step: Step) -> None:
        if (agent.mode, step) not in TRANSITIONS:
            raise WrongMode(f"agent {agent.name} is {agent.mode.value}: it {REFUSALS[step]}")

    # -- Moving to another node

    @contextmanager
    def moving(self, name: str) -> Iterator[None]:
        """Let calls for an agent wait within this context: see `settled`."""
        finished = self._moving[name] = asyncio.Event()
        self.any_unsettled = True
        try:
            yield
        finally:
            del self._moving[name]
            self.any_unsettled = bool(self._moving) or self._directory is not None
            finished.set()

    def is_unsettled(self, name: str) -> bool:
        """Return whether calls for an agent have to wait: for the end of its cut-over, or until it
        was looked up in the directory."""
        if name in self._moving:
            return True
        if self._directory is None or name in self._agents or not AGENT_NAME.fullmatch(name):
            return False
        return asyncio.get_running_loop().time() >= self._unknown.get(name, 0.0)

    async def settled(self, name: str) -> None:
        """Wait until it is known whether this node serves an agent.

        Raises: StoreUnavailable.
        """
        while (finished := self._moving.get(name)) is not None:
            await finished.wait()
        if self._directory is not None and self.is_unsettled(name):
            await self._look_up(name, self._directory)

    async def _look_up(self, name: str, directory: AgentDirectory) -> None:
        secret = await directory.secret_of(name)
        now = asyncio.get_running_loop().time()
        if secret is None:
            self._unknown.pop(name, None)
            self._unknown[name] = now + UNKNOWN_FOR_S
            if len(self._unknown) > UNKNOWN_REMEMBERED:
                del self._unknown[next(iter(self._unknown))]
        elif name not in self._agents:
            self.add(name, AgentMode.MASTER, now)
            self.keys.add(name, AddressKey(secret))
            self._unknown.pop(name, None)

    def mark_moved(self, name: str) -> None:
        """Remove an agent that another node owns now. From now on calls for it get MOVED."""
        self.remove(name)
        self._moved[name] = None
        if len(self._moved) > MOVED_REMEMBERED:
            del self._moved[next(iter(self._moved))]

    def remove(self, name: str) -> None:
        """Remove an agent, with its key."""
        del self._agents[name]
        self.keys.drop(name)

    def check_removable(self, name: str) -> None:
        """Check whether an operator may remove an agent, as far as its mode matters.

        Raises: BadRequest, when the name is not valid; AgentNotFound; WrongMode.
        """
        agent = self.named(name)
        if name in self._moving:
            raise WrongMode(f"agent {name} moves to another node")
        if agent.sources:
            raise WrongMode(f"another node replicates agent {name} here: close the pipe there")

    def dismiss(self, name: str) -> None:
        """Remove an agent because an operator wants it. It may be introduced again."""
        self.remove(name)
        self._own.discard(name)

    def alone_takes_channels(self, name: str) -> bool:
        """Return whether an agent is the only one of this node under which new channels are made,
        now or once it is warm."""
        own = self._own if self._directory is not None else self._agents
        takers = [one.name for one in self if one.mode is AgentMode.MASTER and one.name in own]
        return takers == [name]

    def added_by_sources(self) -> list[Agent]:
        """Return the agents that sources, not settings or commands, have added; oldest first."""
        return [agent for agent in self if agent.added_by_source]

    def is_unneeded(self, agent: Agent) -> bool:
        """Return whether an agent without channels may be removed.

        Only an agent that a source has added may be removed, and only while no node replicates it.
        A MASTER may be removed only if this node has another MASTER, which did not come from
        another node, for new channels.
        """
        if self.get(agent.name) is not agent or not agent.added_by_source or agent.sources:
            return False
        if agent.name in self._moving or agent.mode is AgentMode.PIPED:
            return False
        return agent.mode is AgentMode.REPLICA or any(
            other.mode is AgentMode.MASTER and not other.was_replicated for other in self
        )

    def error_of_absent(self, name: str) -> MegaphoneError:
        """Return the error for a call whose agent is not on this node."""
        if name in self._moved:
            return AgentMoved(f"agent {name} has moved to another node")
        return ChannelNotFound(
            f"no such channel: agent {name} is not on this node;"
            f" a proxy before several nodes finds it by `megaphone-agent: {name}`"
        )

    # -- New channels

    def pick_for_new_channel(self, now: float) -> Agent:
        """Pick at random one of the agents that take new channels now.

        An agent that came from another node is picked only if there is no other. So its channels
        become fewer until the agent can be removed, and agents do not gather on a node.

        Raises: NoAgentAvailable.
        """
        if (
            len(self._agents) == 1 and self._directory is None
        ):  # the rule, and creations are frequent
            [agent] = self._agents.values()
            if agent.takes_channels(now):
                return agent
        agents = list(self)
        if self._directory is not None:
            agents = [agent for agent in agents if agent.name in self._own]
        candidates = [agent for agent in agents if agent.takes_channels(now)]
        if not candidates:
            raise NoAgentAvailable(why_none(agents, now))
        return random.choice([a for a in candidates if not a.was_replicated] or candidates)

    def __iter__(self) -> Iterator[Agent]:
        return iter(self._agents.values())


def why_none(agents: Iterable[Agent], now: float) -> str:
    """Return why none of some agents takes new channels."""
    waits = [agent.warm_at - now for agent in agents if agent.mode is AgentMode.MASTER]
    if not waits:
        return "this node has no MASTER agent"
    return f"no agent of this node is warm yet; the next one will be in {min(waits):.0f} s"


def checked_name(name: str) -> str:
    """Check and return the name of an agent. Raises: BadRequest, when the name is not valid."""
    if not AGENT_NAME.fullmatch(name):
        raise BadRequest(
            f"an agent's name must be 1 to {MAX_NAME_LENGTH} letters, digits, `_` and `-`"
        )
    return name
