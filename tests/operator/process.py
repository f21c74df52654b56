"""The operator as its users start it: a process with a kubeconfig."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from tests.operator.api_server import ApiServer
from tests.support import leaks

LIMIT_S = 20.0


async def until(condition: Callable[[], object], what: str, within_s: float = LIMIT_S) -> None:
    """Wait until something is so. Fails if it takes longer than a loaded machine needs."""
    try:
        async with asyncio.timeout(within_s):
            while not condition():  # noqa: ASYNC110 - another process makes it so
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"not so after {within_s} s: {what}") from None


class Operator:
    """A running operator."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[dict[str, Any]] = []
        """What it has logged."""
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            leaks.check(line.decode(), "the log of the operator")
            self.lines.append(json.loads(line))

    def logged(self, message: str) -> bool:
        return any(message in line["message"] for line in self.lines)

    async def port(self) -> int:
        """Return where its probes and metrics are."""
        start = "probes and metrics on port "
        await until(lambda: self.logged(start), f"the port is logged: {self.lines}")
        [line] = [line["message"] for line in self.lines if start in line["message"]]
        return int(line.removeprefix(start))

    async def fetch(self, path: str) -> tuple[int, str]:
        url = f"http://127.0.0.1:{await self.port()}{path}"
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            return answer.status, await answer.text()

    async def stop(self, number: int = signal.SIGTERM) -> int:
        """Stop it. Returns: its exit code."""
        if self.process.returncode is None:
            self.process.send_signal(number)
        async with asyncio.timeout(LIMIT_S):
            code = await self.process.wait()
            await self._reading
        return code


@asynccontextmanager
async def operator(server: ApiServer, folder: Path, *options: str) -> AsyncIterator[Operator]:
    kubeconfig = folder / "kubeconfig"
    kubeconfig.write_text(json.dumps(kubeconfig_for(server.url)))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "megaphone_operator", "--kubeconfig", str(kubeconfig),
        "--address", "127.0.0.1:0", "--resolver", "10.0.0.10", "--lease-namespace", "default",
        *options, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    running = Operator(process)
    try:
        yield running
    finally:
        await running.stop(signal.SIGKILL)


def kubeconfig_for(url: str) -> dict[str, Any]:
    return {
        "current-context": "test",
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "clusters": [{"name": "test", "cluster": {"server": url}}],
        "users": [{"name": "test", "user": {"token": "a-token-of-the-api-server"}}],
    }
