"""Virtual agents: the names under which a node owns channels.

A channel belongs to an agent, not to a node: its addresses start with the agent's name, by which
proxies route, and its producer address is sealed with the agent's key. So an agent can be
forwarded to another node, which then holds it as a replica under the same name with the same key.

What may become of an agent is one table, `TRANSITIONS`:

                  pipe
    MASTER ───────────────▶ PIPED ◀─┐ pipe
      ▲  ▲      promote       │  └──┘
      │  └────────────────────┘  (no pipe is connected)
      │ promote
    REPLICA ──── pipe (nobody feeds it) ──▶ PIPED
      ▲  └─┐ feed (with the same key)
      └────┘

A pipe that leads nowhere is undone: the agent is again what it was before it (`take_back`).
"""

import asyncio
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum, auto

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
"""How many agents that have left are remembered, so that who asks for them is told so."""
AGENT_NAME = re.compile(rf"[A-Za-z0-9_-]{{1,{MAX_NAME_LENGTH}}}")


class Step(Enum):
    """What is done to an agent."""

    PIPE = auto()
    """It is forwarded to another node."""
    FEED = auto()
    """Another node begins to feed it."""
    PROMOTE = auto()
    """It is made the master of its channels."""


TRANSITIONS = {
    (AgentMode.MASTER, Step.PIPE): AgentMode.PIPED,
    (AgentMode.PIPED, Step.PIPE): AgentMode.PIPED,
    (AgentMode.PIPED, Step.PROMOTE): AgentMode.MASTER,
    (AgentMode.REPLICA, Step.PIPE): AgentMode.PIPED,
    (AgentMode.REPLICA, Step.FEED): AgentMode.REPLICA,
    (AgentMode.REPLICA, Step.PROMOTE): AgentMode.MASTER,
}
"""The mode after a step, by the mode before it. What is not here is refused."""

REFUSALS = {
    Step.PIPE: "cannot be replicated to another node",
    Step.FEED: "cannot be replicated here by another node",
    Step.PROMOTE: "cannot be promoted",
}


@dataclass(slots=True, eq=False)
class Agent:
    """One agent. Only `Agents` changes its mode."""

    name: str
    mode: AgentMode
    since: datetime
    """When it took on its mode."""
    warm_at: float
    """The loop time from which it takes new channels."""
    feeds: int = field(default=0, init=False)
    """How many nodes feed it now."""
    pipes: int = field(default=0, init=False)
    """How many nodes it is forwarded to now, over a connection that stands."""
    before_pipe: AgentMode = field(default=AgentMode.MASTER, init=False)
    """Its mode before it was forwarded."""
    was_fed: bool = field(default=False, init=False)
    """Whether its key came from another node."""
    made_by_feed: bool = field(default=False, init=False)
    """Whether it is here only because another node has fed it: not by a setting or a command."""

    @property
    def is_owned(self) -> bool:
        """Whether this is the node to which its calls belong. A replica's belong to its source."""
        return self.mode is not AgentMode.REPLICA

    def is_warming_up(self, now: float) -> bool:
        return self.mode is AgentMode.MASTER and now < self.warm_at

    def takes_channels(self, now: float) -> bool:
        return self.mode is AgentMode.MASTER and now >= self.warm_at


class Agents:
    """The agents of this node, by name."""

    def __init__(self, warmup_s: float, keys: KeyRing | None = None) -> None:
        self._warmup_s = warmup_s
        self.keys = KeyRing() if keys is None else keys
        """The keys of the agents."""
        self._agents: dict[str, Agent] = {}
        self._moving: dict[str, asyncio.Event] = {}
        """Those that are about to leave, and what is set when it is known whether they have."""
        self._moved: dict[str, None] = {}

    def add(self, name: str, mode: AgentMode, now: float) -> Agent:
        """Add an agent with a key of its own; a master takes channels once it is warm.

        Raises: BadRequest, when the name cannot be one or is taken.
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
        """Return an agent whose clients this node serves.

        One that has moved away, and is fed to this node again, is not served before it is promoted:
        clients that have not learned of its move would write where no reader comes.

        Raises: AgentMoved; ChannelNotFound.
        """
        agent = self._agents.get(name)
        if agent is None or name in self._moved:
            raise self.why_absent(name)
        return agent

    def get(self, name: str) -> Agent | None:
        return self._agents.get(name)

    def is_owned(self, name: str) -> bool:
        """Tell whether this node answers for the channels of an agent, which is here or was."""
        agent = self._agents.get(name)
        return agent is None or agent.is_owned

    def named(self, name: str) -> Agent:
        """Raises: AgentNotFound."""
        if (agent := self._agents.get(name)) is None:
            checked_name(name)
            raise AgentNotFound(f"agent {name} is not on this node")
        return agent

    def pipe(self, name: str) -> Agent:
        """Have an agent forwarded: it takes no new channels from now on.

        Raises: AgentNotFound; WrongMode, while another node feeds it.
        """
        agent = self.named(name)
        if agent.feeds:
            raise WrongMode(
                f"agent {name} cannot be replicated while another node replicates it here"
            )
        before = agent.mode
        self._take(agent, Step.PIPE)
        if before is not AgentMode.PIPED:
            agent.before_pipe = before
        return agent

    def take_back(self, name: str) -> None:
        """Undo that an agent is forwarded, once it has no pipe any more."""
        agent = self.named(name)
        agent.mode, agent.since = agent.before_pipe, datetime.now(UTC)

    def feed(self, name: str, secret: bytes) -> Agent:
        """Have an agent fed by another node, under the key that it has there.

        It is a replica. One that was here before may come back, or have a second source, if it has
        the same key; so may a replica that was configured and has never been fed.

        Raises: BadRequest, when the name or the key cannot be one; WrongMode, when an agent of
            that name is master or forwarded here, or has another key.
        """
        key = AddressKey(secret)
        if (agent := self._agents.get(name)) is None:
            agent = self.add(name, AgentMode.REPLICA, now=0.0)
            agent.made_by_feed = True
        self._check(agent, Step.FEED)
        if agent.was_fed and self.keys.of(name).secret != secret:
            raise WrongMode(f"agent {name} has another key here: two nodes use the same name")
        if not agent.was_fed:
            self.keys.add(name, key)
            agent.was_fed = True
        return agent

    def promote(self, name: str, now: float) -> Agent:
        """Make an agent a master that is warm at once, since proxies know it.

        Raises: AgentNotFound; WrongMode, when it is a master already, or its pipe is connected.
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

    # -- Leaving for another node

    @contextmanager
    def moving(self, name: str) -> Iterator[None]:
        """Within this context what is to be done with an agent waits: see `move_finished`."""
        finished = self._moving[name] = asyncio.Event()
        try:
            yield
        finally:
            del self._moving[name]
            finished.set()

    @property
    def are_moving(self) -> bool:
        """Whether `move_finished` may have to wait."""
        return bool(self._moving)

    def is_moving(self, name: str) -> bool:
        return name in self._moving

    async def move_finished(self, name: str) -> None:
        """Wait until it is known whether an agent has left, if it is about to."""
        while (finished := self._moving.get(name)) is not None:
            await finished.wait()

    def leave(self, name: str) -> None:
        """Let go of an agent that lives on another node now."""
        self.remove(name)
        self._moved[name] = None
        if len(self._moved) > MOVED_REMEMBERED:
            del self._moved[next(iter(self._moved))]

    def remove(self, name: str) -> None:
        """Let go of an agent that nobody needs any more."""
        del self._agents[name]
        self.keys.drop(name)

    def made_by_feeds(self) -> list[Agent]:
        """Return the agents that are here only because other nodes have fed them, oldest first."""
        return [agent for agent in self if agent.made_by_feed]

    def is_unneeded(self, agent: Agent) -> bool:
        """Tell whether an agent that a feed has made is of no use any more, if it has no channels.

        A master is of use where there is no other one that would take new channels before it.
        """
        if self.get(agent.name) is not agent or not agent.made_by_feed or agent.feeds:
            return False
        if agent.name in self._moving or agent.mode is AgentMode.PIPED:
            return False
        return agent.mode is AgentMode.REPLICA or any(
            other.mode is AgentMode.MASTER and not other.was_fed for other in self
        )

    def why_absent(self, name: str) -> MegaphoneError:
        """Return what a call for a channel of an agent gets that is not here."""
        if name in self._moved:
            return AgentMoved(f"agent {name} has moved to another node")
        return ChannelNotFound(
            f"no such channel: agent {name} is not on this node;"
            f" a proxy before several nodes finds it by `megaphone-agent: {name}`"
        )

    # -- New channels

    def pick_for_new_channel(self, now: float) -> Agent:
        """Pick any agent that takes new channels now.

        One that came from another node only if there is no other: so it is gone for good once its
        channels are, and agents do not gather on nodes that take over from others.

        Raises: NoAgentAvailable.
        """
        candidates = [agent for agent in self if agent.takes_channels(now)]
        if not candidates:
            raise NoAgentAvailable(self._why_none(now))
        return random.choice([a for a in candidates if not a.was_fed] or candidates)

    def _why_none(self, now: float) -> str:
        waits = [agent.warm_at - now for agent in self if agent.mode is AgentMode.MASTER]
        if not waits:
            return "this node has no MASTER agent"
        return f"no agent of this node is warm yet; the next one will be in {min(waits):.0f} s"

    def __iter__(self) -> Iterator[Agent]:
        return iter(self._agents.values())


def checked_name(name: str) -> str:
    """Raises: BadRequest, when the name cannot be one."""
    if not AGENT_NAME.fullmatch(name):
        raise BadRequest(
            f"an agent's name must be 1 to {MAX_NAME_LENGTH} letters, digits, `_` and `-`"
        )
    return name
