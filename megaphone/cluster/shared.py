"""A node whose channels are in a shared store replicates nothing, and nothing is replicated to it:
each node of the store serves all agents."""

from collections.abc import AsyncGenerator, Sequence
from typing import NoReturn

from megaphone.errors import WrongMode
from megaphone.model import DrainProgress, PipeInfo

REASON = "the channels of this node are in a shared store: each node of the store serves them"


class Unreplicated:
    """Takes the places of pipes and drains in a node with a shared store, and refuses all."""

    progress: DrainProgress | None = None

    def described(self) -> Sequence[PipeInfo]:
        return ()

    async def pipe(self, agent: str, target: str) -> None:
        raise WrongMode(REASON)

    async def unpipe(self, agent: str, target: str | None, *, force: bool) -> None:
        raise WrongMode(REASON)

    def forget_sources(self, agent: str) -> None:
        """Do nothing, because no node replicates an agent to this one."""

    async def drain(self, target: str) -> AsyncGenerator[DrainProgress, None]:
        for _ in range(1):
            raise WrongMode(REASON)
        yield DrainProgress("", 0, 0, 0, 0, 0)

    async def open(self, agent: str, key: bytes, source_id: str) -> NoReturn:
        raise WrongMode(REASON)

    async def usage(self, addresses: Sequence[str]) -> NoReturn:
        raise WrongMode(REASON)
