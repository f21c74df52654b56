"""Webhooks report removed channels to other services.

Each hook has a queue and a task of its own, so that a slow endpoint delays no other hook. A hook
collects channels for a second and reports them together, with one request at a time. If an endpoint
does not accept a request, the hook tries it again for some minutes, with growing pauses. Channels
that are not reported in the end are counted as lost. Every queue has a limit.

A hook calls only addresses that `core.destinations` allows. Its name is resolved once for each try,
and the connection goes to one of the addresses that were checked. Redirects are not followed.

Requests have the form of the Standard Webhooks specification: an id, which is the same in every try
of a request; the time of the try; and, if a secret is set, a signature of both and of the body. Log
lines contain the name of a hook, but never an address, a secret, or an endpoint, which may contain
a secret.
"""

import asyncio
import hmac
import json
import logging
import os
import random
import socket
import time
from base64 import b64decode, b64encode
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Self
from uuid import uuid4

import aiohttp
from yarl import URL

from megaphone import __version__
from megaphone.core.destinations import Destinations
from megaphone.observe.resolver import AddressRefused, CheckedResolver
from megaphone.settings import Webhook

log = logging.getLogger(__name__)

BASE64_PREFIX = "whsec_"
LAST_TRIES_AT_ONCE = 8
"""How many requests of a hook may be under way at once while the node stops."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookLimits:
    """The limits of each hook."""

    batch: int = 1_000
    """The most addresses in one request."""
    capacity: int = 100_000
    """The most addresses that may wait for a request."""
    interval_s: float = 1.0
    """How long a hook collects addresses before it sends them, unless a batch is full earlier."""
    timeout_s: float = 10.0
    """How long an endpoint may take to answer."""
    retry_s: float = 1.0
    """The first pause before a request is tried again; each further one is twice as long."""
    longest_retry_s: float = 60.0
    """The longest of these pauses."""
    give_up_s: float = 300.0
    """How long after its first try a request may be tried again."""
    stop_s: float = 2.0
    """How long the end waits for the last tries."""


DEFAULT_LIMITS = WebhookLimits()


class Webhooks:
    """All hooks of a node. They send requests from the start to the end of the context.

    `channel_removed` may be called at any time. If it is called before the start, the report is
    sent after the start. If it is called after the end, the report is lost. At the end the hooks
    try each report that is not sent yet once more.
    """

    def __init__(
        self,
        hooks: Mapping[str, Webhook],
        *,
        allow: Sequence[str] = (),
        limits: WebhookLimits = DEFAULT_LIMITS,
    ) -> None:
        """`allow` are the destinations that the hooks may call besides public addresses.

        Raises: ValueError, if one of `allow` is wrong.
        """
        self._limits = limits
        self._destinations = Destinations.parse(allow)
        self._hooks = [
            Hook(name, webhook, self._destinations, limits) for name, webhook in hooks.items()
        ]
        self._tasks: list[asyncio.Task[None]] = []
        self._session: aiohttp.ClientSession | None = None

    @property
    def sent(self) -> int:
        """How many requests an endpoint has accepted."""
        return sum(hook.sent for hook in self._hooks)

    @property
    def failed(self) -> int:
        """How many tries to send a request have failed."""
        return sum(hook.failed for hook in self._hooks)

    @property
    def lost(self) -> int:
        """How many addresses were not reported to a hook, and will not be."""
        return sum(hook.lost for hook in self._hooks)

    @property
    def waiting(self) -> int:
        """How many addresses are to be reported to a hook."""
        return sum(hook.waiting for hook in self._hooks)

    def channel_removed(self, consumer_address: str) -> None:
        """Report to every hook, soon, that a channel was removed. Never raises and never waits."""
        for hook in self._hooks:
            hook.add(consumer_address)

    async def __aenter__(self) -> Self:
        if self._hooks:
            resolver = CheckedResolver(self._destinations)
            self._session = session = new_session(resolver, self._limits.timeout_s)
            self._tasks = [asyncio.create_task(hook.run(session)) for hook in self._hooks]
            self._tasks += [asyncio.create_task(hook.look_up(resolver)) for hook in self._hooks]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._session is None:
            return
        for hook in self._hooks:
            hook.stop()
            for _ in range(LAST_TRIES_AT_ONCE):
                self._tasks.append(asyncio.create_task(hook.send_rest(self._session)))
        try:
            await asyncio.wait(self._tasks, timeout=self._limits.stop_s)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)
            for hook in self._hooks:
                hook.close()
            await self._session.close()


def new_session(resolver: CheckedResolver, timeout_s: float) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        # Each request has a connection of its own, because an endpoint may close a kept connection
        # at the moment of its next use. The hooks limit the number of connections. With a limit
        # here, a slow endpoint could delay other hooks.
        connector=aiohttp.TCPConnector(
            force_close=True,
            limit=0,
            resolver=resolver,
            use_dns_cache=False,  # so that each try checks the addresses of that moment
        ),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=timeout_s),
        headers={"Content-Type": "application/json", "User-Agent": f"megaphone/{__version__}"},
    )


class Request:
    """One report. Its tries differ only in their time and signature."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self.id = f"msg_{uuid4().hex}"
        self.body = json.dumps({"channels": addresses}, separators=(",", ":")).encode()

    def headers(self, timestamp: int, key: bytes | None) -> dict[str, str]:
        headers = {"Webhook-Id": self.id, "Webhook-Timestamp": str(timestamp)}
        if key is not None:
            headers["Webhook-Signature"] = signature(key, self.id, timestamp, self.body)
        return headers


class Hook:
    """One hook: its queue, its requests and its counts."""

    def __init__(
        self, name: str, webhook: Webhook, destinations: Destinations, limits: WebhookLimits
    ) -> None:
        self.sent = 0
        self.failed = 0
        self.lost = 0
        self._name = name
        url = URL(webhook.endpoint, encoded=True)  # is sent exactly as it is written in the setting
        self._url = url.with_user(None)
        self._host = url.raw_host or ""
        self._may_call = destinations.may_allow(self._host)
        self._authorization = authorization_of(url)
        self._key = None if webhook.secret is None else key_of(webhook.secret)
        self._limits = limits
        self._waiting: deque[str] = deque()
        self._sending = 0
        """How many addresses are in requests that are being tried."""
        self._is_stopping = asyncio.Event()
        self._is_closed = False
        self._is_full = False
        self._last_reason: str | None = None

    @property
    def waiting(self) -> int:
        """How many addresses are to be reported: those in requests, and those that wait for one."""
        return len(self._waiting) + self._sending

    def add(self, address: str) -> None:
        """Queue an address for the next request, if there is room."""
        if self._is_closed:
            self.lost += 1
        elif len(self._waiting) < self._limits.capacity:
            self._waiting.append(address)
        else:
            self._overflow()

    async def look_up(self, resolver: CheckedResolver) -> None:
        """Log it now, and not only when channels have ended, if the endpoint may not be called."""
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                await resolver.resolve(self._host, family=socket.AF_UNSPEC)
        except AddressRefused as error:
            self._note(reason_of(error))
        except OSError:
            pass  # a name that is not known yet, or a name server that is away

    async def run(self, session: aiohttp.ClientSession) -> None:
        """Until `stop` is called, send the waiting addresses once per interval, or at once when
        there are enough for a whole batch."""
        while not self._is_stopping.is_set():
            if len(self._waiting) < self._limits.batch:
                await self._pause(self._limits.interval_s)
            await self._send_next(session)

    async def send_rest(self, session: aiohttp.ClientSession) -> None:
        """Send all waiting addresses. May run several times at once."""
        while self._waiting:
            await self._send_next(session)

    def stop(self) -> None:
        """Make no more pauses, and try each request only once more."""
        self._is_stopping.set()

    def close(self) -> None:
        """Count waiting and further addresses as lost. No task of the hook may run any more."""
        self._is_closed = True
        self.lost += len(self._waiting)
        self._waiting.clear()
        if self.lost:
            self._log("stopped; %d channels in total were not reported", self.lost)

    def _overflow(self) -> None:
        """Count a lost channel. Log this only if the queue has been empty since it was last
        logged."""
        self.lost += 1
        if not self._is_full:
            self._is_full = True
            self._log(
                "%d channels wait to be reported; further channels will not be reported",
                self._limits.capacity,
            )

    async def _pause(self, length_s: float) -> None:
        """Wait for a time, or until `stop` is called."""
        with suppress(TimeoutError):
            async with asyncio.timeout(length_s):
                await self._is_stopping.wait()

    # -- Requests

    async def _send_next(self, session: aiohttp.ClientSession) -> None:
        size = min(len(self._waiting), self._limits.batch)
        if size == 0:
            return
        addresses = [self._waiting.popleft() for _ in range(size)]
        if not self._waiting:
            self._is_full = False
        is_sent = False
        self._sending += size
        try:
            is_sent = await self._send(session, addresses)
        finally:  # also if the task is cancelled at the end
            self._sending -= size
            if not is_sent:
                self.lost += size

    async def _send(self, session: aiohttp.ClientSession, addresses: Sequence[str]) -> bool:
        """Try a request until the endpoint accepts it or it is time to give up.

        Returns: whether the endpoint accepted it.
        """
        request = Request(addresses)
        give_up_at = loop_time() + self._limits.give_up_s
        least_pause_s = self._limits.retry_s
        while (reason := await self._try(session, request)) is not None:
            self._failed(reason)
            if self._is_stopping.is_set():
                return False  # `close` logs what was lost
            # Random, so that nodes whose requests failed together do not come back together.
            pause_s = least_pause_s * random.uniform(1.0, 1.5)
            if loop_time() + pause_s > give_up_at:
                self._log(
                    "gave up a request (%s): %d channels are not reported", reason, len(addresses)
                )
                return False
            await self._pause(pause_s)
            least_pause_s = min(2 * least_pause_s, self._limits.longest_retry_s)
        self._succeeded()
        return True

    async def _try(self, session: aiohttp.ClientSession, request: Request) -> str | None:
        """Send a request. Returns: the reason of a failure; None on success."""
        headers = self._authorization | request.headers(int(time.time()), self._key)
        try:
            if not self._may_call:  # aiohttp resolves names only, so it would call any address
                raise AddressRefused
            async with session.post(
                self._url, data=request.body, headers=headers, allow_redirects=False
            ) as response:
                return None if 200 <= response.status < 300 else f"status {response.status}"
        except Exception as error:  # the hook must go on after any error
            return reason_of(error)

    def _succeeded(self) -> None:
        self.sent += 1
        if self._last_reason is not None:
            self._last_reason = None
            self._log("requests are accepted again", level=logging.INFO)

    def _failed(self, reason: str) -> None:
        """Count a failure, and log it."""
        self.failed += 1
        self._note(reason)

    def _note(self, reason: str) -> None:
        """Log why a request fails, unless the one before failed for the same reason."""
        if reason != self._last_reason:
            self._last_reason = reason
            self._log("a request was not accepted (%s)", reason)

    def _log(self, text: str, *values: object, level: int = logging.WARNING) -> None:
        log.log(level, f"webhook %s: {text}", self._name, *values)  # noqa: G004


def authorization_of(url: URL) -> dict[str, str]:
    """Return the header for the user part of a URL, in UTF-8, because aiohttp would use Latin-1."""
    if url.user is None and url.password is None:
        return {}
    user = f"{url.user or ''}:{url.password or ''}"
    return {"Authorization": f"Basic {b64encode(user.encode()).decode()}"}


def key_of(secret: str) -> bytes:
    """Return the signing key that a secret encodes."""
    if secret.startswith(BASE64_PREFIX):
        return b64decode(secret.removeprefix(BASE64_PREFIX), validate=True)
    return secret.encode(errors="surrogateescape")  # an environment variable may hold any bytes


def signature(key: bytes, request_id: str, timestamp: int, body: bytes) -> str:
    """Return a signature of version 1 of the Standard Webhooks specification."""
    signed = f"{request_id}.{timestamp}.".encode() + body
    return f"v1,{b64encode(hmac.digest(key, signed, 'sha256')).decode()}"


def reason_of(error: Exception) -> str:
    """Describe an error without its own text, because that may contain the endpoint."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, AddressRefused):
        return "its address is not public, and not in `webhooks_allow`"
    # The `errno` of an error of TLS or DNS is not a number of the operating system.
    is_numbered = not isinstance(error, (aiohttp.ClientSSLError, aiohttp.ClientConnectorDNSError))
    if isinstance(error, OSError) and error.errno and is_numbered:
        return os.strerror(error.errno)
    return type(error).__name__


def loop_time() -> float:
    return asyncio.get_running_loop().time()
