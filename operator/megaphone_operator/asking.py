"""Asks nodes which agents they have, and pods of the former operator how many channels."""

import asyncio
import re
from collections.abc import Iterable, Mapping

import aiohttp
import msgspec

from megaphone_operator.plan.names import HTTP_PORT, OPS_PORT
from megaphone_operator.plan.seen import (
    Agent,
    Agents,
    Answer,
    LegacyChannels,
    Pod,
    TooOld,
)

TIMEOUT_S = 2.0
MAX_ANSWER_BYTES = 4_194_304
NOT_FOUND = 404
OK = 200
COUNTER = re.compile(
    rb"^megaphone_channel_(created|disposed)(?:_total)?(?:\{[^}]*\})? (\S+)", re.MULTILINE
)


class Asking:
    """Asks nodes over HTTP. A node that does not answer within two seconds has no answer."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def ask(self, pods: Iterable[Pod]) -> Mapping[str, Answer]:
        """Ask all pods at once. Returns: the answers by the name of the pod."""
        asked = [pod for pod in pods if pod.ip and pod.is_running and not pod.has_ended]
        answers = await asyncio.gather(*(self._ask(pod) for pod in asked))
        return {
            pod.name: answer
            for pod, answer in zip(asked, answers, strict=True)
            if answer is not None
        }

    async def _ask(self, pod: Pod) -> Answer | None:
        question = self._ask_legacy_pod if pod.is_legacy else self._ask_node
        host = f"[{pod.ip}]" if pod.ip and ":" in pod.ip else str(pod.ip)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                return await question(host)
        except (aiohttp.ClientError, TimeoutError, OSError, msgspec.DecodeError):
            return None

    async def _ask_node(self, host: str) -> Answer | None:
        try:
            status, body = await self._get(host, OPS_PORT, "/agents")
        except aiohttp.ClientConnectorError:
            # The former broker has no such port, but it says what it does not know at another one.
            status, _ = await self._get(host, HTTP_PORT, "/agents")
            return TooOld() if status == NOT_FOUND else None
        if status == NOT_FOUND:
            return TooOld()
        return Agents(tuple(msgspec.json.decode(body, type=list[Agent]))) if status == OK else None

    async def _ask_legacy_pod(self, host: str) -> Answer | None:
        status, body = await self._get(host, HTTP_PORT, "/metrics")
        return legacy_answer(body) if status == OK else None

    async def _get(self, host: str, port: int, path: str) -> tuple[int, bytes]:
        url = f"http://{host}:{port}{path}"
        async with self._session.get(url, allow_redirects=False) as answer:
            body = b""
            async for part in answer.content.iter_chunked(65_536):
                body += part
                if len(body) > MAX_ANSWER_BYTES:
                    raise aiohttp.ClientPayloadError("the answer is too long")
            return answer.status, body


def legacy_answer(body: bytes) -> Answer | None:
    """Read the metrics of the former broker. It counts what was created and what was disposed.

    It renders only what it has counted. So before its first channel the answer is empty.
    """
    if not body.strip():
        return LegacyChannels(0)
    counts: dict[bytes, float] = {}
    for name, value in COUNTER.findall(body):
        counts[name] = counts.get(name, 0) + float(value)
    if b"created" not in counts:
        return None
    return LegacyChannels(max(0, int(counts[b"created"] - counts.get(b"disposed", 0))))
