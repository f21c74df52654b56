"""Asks nodes which agents they have, and pods of the former broker how many channels."""

import asyncio
import re
from collections.abc import Iterable, Mapping

import aiohttp
import msgspec

from megaphone_operator.plan.names import HTTP_PORT
from megaphone_operator.plan.seen import (
    Agent,
    Agents,
    Answer,
    LegacyChannels,
    Pod,
    Refused,
    TooOld,
)

TIMEOUT_S = 2.0
MAX_ANSWER_BYTES = 4_194_304
NOT_FOUND = 404
WITHOUT_RIGHT = (401, 403)
OK = 200
COUNTER = re.compile(
    rb"^megaphone_channel_(created|disposed)(?:_total)?(?:\{[^}]*\})? (\S+)", re.MULTILINE
)


class Asking:
    """Asks nodes over HTTP. A node that does not answer within two seconds has no answer."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def ask(self, pods: Iterable[Pod], *, has_tls: bool) -> Mapping[str, Answer]:
        """Ask all pods at once. Returns: the answers by the name of the pod.

        With `has_tls` the nodes show a certificate. Nobody checks it: its names are those that
        clients use, and the question has no secret.
        """
        asked = [pod for pod in pods if pod.ip and pod.is_running and not pod.has_ended]
        answers = await asyncio.gather(*(self._ask(pod, has_tls) for pod in asked))
        return {
            pod.name: answer
            for pod, answer in zip(asked, answers, strict=True)
            if answer is not None
        }

    async def _ask(self, pod: Pod, has_tls: bool) -> Answer | None:
        scheme = "https" if has_tls and not pod.is_legacy else "http"
        path = "/metrics" if pod.is_legacy else "/agents"
        host = f"[{pod.ip}]" if pod.ip and ":" in pod.ip else pod.ip
        try:
            status, body = await self._get(f"{scheme}://{host}:{HTTP_PORT}{path}")
            return legacy_answer(status, body) if pod.is_legacy else node_answer(status, body)
        except (aiohttp.ClientError, TimeoutError, OSError, msgspec.DecodeError):
            return None

    async def _get(self, url: str) -> tuple[int, bytes]:
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        async with self._session.get(
            url, timeout=timeout, ssl=False, allow_redirects=False
        ) as answer:
            body = b""
            async for part in answer.content.iter_chunked(65_536):
                body += part
                if len(body) > MAX_ANSWER_BYTES:
                    raise aiohttp.ClientPayloadError("the answer is too long")
            return answer.status, body


def node_answer(status: int, body: bytes) -> Answer | None:
    """Read the answer to `GET /agents`. Raises: msgspec.DecodeError."""
    if status == NOT_FOUND:
        return TooOld()
    if status in WITHOUT_RIGHT:
        return Refused()
    if status != OK:
        return None
    return Agents(tuple(msgspec.json.decode(body, type=list[Agent])))


def legacy_answer(status: int, body: bytes) -> Answer | None:
    """Read the metrics of the former broker. It counts what was created and what was disposed."""
    counts: dict[bytes, float] = {}
    for name, value in COUNTER.findall(body):
        counts[name] = counts.get(name, 0) + float(value)
    if status != OK or b"created" not in counts:
        return None
    return LegacyChannels(max(0, int(counts[b"created"] - counts.get(b"disposed", 0))))
