"""Probes: questions to a container, again and again."""

import asyncio
from collections.abc import Callable
from typing import Any

import aiohttp

from tests.operator_e2e.api import Object

CHEERFUL = range(200, 400)


class Probe:
    """Asks a container as its pod says, and reports each change of the verdict."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        wanted: Object,
        container: Object,
        address: str,
        report: Callable[[bool], None],
    ) -> None:
        self._session = session
        self._wanted = wanted
        self._container = container
        self._address = address
        self._report = report

    async def run(self) -> None:
        """Ask until it is cancelled. Each report comes after as many equal answers as the pod
        wants."""
        await self.run_until(lambda: False)

    async def run_until(self, is_enough: Callable[[], bool]) -> None:
        """Ask in the same way, until it is enough."""
        await asyncio.sleep(self._wanted.get("initialDelaySeconds", 0))
        good = bad = 0
        while not is_enough():
            if await self._ask():
                good, bad = good + 1, 0
                if good >= self._wanted.get("successThreshold", 1):
                    self._report(True)
            else:
                good, bad = 0, bad + 1
                if bad >= self._wanted.get("failureThreshold", 3):
                    self._report(False)
            await asyncio.sleep(self._wanted.get("periodSeconds", 10))

    async def _ask(self) -> bool:
        try:
            async with asyncio.timeout(self._wanted.get("timeoutSeconds", 1)):
                if "httpGet" in self._wanted:
                    return await self._ask_by_http(self._wanted["httpGet"])
                if "tcpSocket" in self._wanted:
                    return await self._ask_by_tcp(self._wanted["tcpSocket"])
                raise NotImplementedError(f"a probe like {sorted(self._wanted)}")
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False

    async def _ask_by_http(self, request: Object) -> bool:
        scheme = request.get("scheme", "HTTP").lower()
        url = f"{scheme}://{self._address}:{self._port(request['port'])}{request.get('path', '/')}"
        headers = {one["name"]: one["value"] for one in request.get("httpHeaders", ())}
        async with self._session.get(url, headers=headers, ssl=False) as answer:
            return answer.status in CHEERFUL

    async def _ask_by_tcp(self, request: Object) -> bool:
        _, writer = await asyncio.open_connection(self._address, self._port(request["port"]))
        writer.close()
        return True

    def _port(self, port: Any) -> int:
        """Return a port, which may be given by its name."""
        ports = {one.get("name"): one["containerPort"] for one in self._container.get("ports", ())}
        return int(ports.get(port, port))
