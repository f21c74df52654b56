"""Virtual agents: the names under which a node owns channels.

A channel belongs to an agent, not to a node: its addresses start with the agent's name, by which
proxies route, and its producer address is sealed with the agent's key.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from megaphone.core.addresses import AddressKey
from megaphone.errors import BadRequest, NoAgentAvailable
from megaphone.model import AgentMode

MAX_NAME_LENGTH = 100
AGENT_NAME = re.compile(rf"[A-Za-z0-9_-]{{1,{MAX_NAME_LENGTH}}}")


@dataclass(frozen=True, slots=True)
class Agent:
    name: str
    mode: AgentMode
    key: AddressKey
    since: datetime
    warm_at: float
    """The loop time from which it takes new channels."""

    def is_warming_up(self, now: float) -> bool:
        return self.mode is AgentMode.MASTER and now < self.warm_at

    def takes_channels(self, now: float) -> bool:
        return self.mode is AgentMode.MASTER and now >= self.warm_at


class Agents:
    """The agents of this node, by name."""

    def __init__(self, warmup_s: float) -> None:
        self._warmup_s = warmup_s
        self._agents: dict[str, Agent] = {}

    def add(self, name: str, mode: AgentMode, now: float) -> Agent:
        """Add an agent with a key of its own; a master takes channels once it is warm.

        Raises: BadRequest, when the name cannot be one or is taken.
        """
        if not AGENT_NAME.fullmatch(name):
            raise BadRequest(
                f"an agent's name must be 1 to {MAX_NAME_LENGTH} letters, digits, `_` and `-`"
            )
        if name in self._agents:
            raise BadRequest(f"agent {name} is on this node already")
        agent = Agent(name, mode, AddressKey.random(), datetime.now(UTC), now + self._warmup_s)
        self._agents[name] = agent
        return agent

    def get(self, name: str) -> Agent | None:
        return self._agents.get(name)

    def pick_for_new_channel(self, now: float) -> Agent:
        """Pick any agent that takes new channels now.

        Raises: NoAgentAvailable.
        """
        candidates = [agent for agent in self if agent.takes_channels(now)]
        if not candidates:
            raise NoAgentAvailable(self._why_none(now))
        return random.choice(candidates)

    def _why_none(self, now: float) -> str:
        waits = [agent.warm_at - now for agent in self if agent.mode is AgentMode.MASTER]
        if not waits:
            return "this node has no MASTER agent"
        return f"no agent of this node is warm yet; the next one is in {min(waits):.0f} s"

    def __iter__(self) -> Iterator[Agent]:
        return iter(self._agents.values())
