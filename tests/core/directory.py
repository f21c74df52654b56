"""A directory of agents in memory. Fulfils `core.agents.AgentDirectory`."""

import asyncio

from megaphone.errors import StoreUnavailable


class MemoryDirectory:
    """Notes which agents it was asked for."""

    def __init__(self, answers_in_s: float = 0.0) -> None:
        self.secrets: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.is_away = False
        self._answers_in_s = answers_in_s

    async def add(self, name: str, secret: bytes) -> bytes:
        await self._answer()
        return self.secrets.setdefault(name, secret)

    async def secret_of(self, name: str) -> bytes | None:
        self.asked.append(name)
        await self._answer()
        return self.secrets.get(name)

    async def _answer(self) -> None:
        await asyncio.sleep(self._answers_in_s)
        if self.is_away:
            raise StoreUnavailable
