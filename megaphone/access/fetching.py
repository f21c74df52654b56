"""When to get the keys of an issuer: at the start, every five minutes, and for an unknown key.

Anybody can send tokens that name unknown keys, so they cause at most one request in 30 seconds, and
all calls that need its result wait for the same one. While the issuer does not answer, its old keys
stay valid for a day. A key that it publishes no more is not valid any more.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, final

from megaphone.access.jwks import FetchFailed
from megaphone.access.keys import NO_KEYS, Key, KeySet
from megaphone.errors import KeysUnavailable

log = logging.getLogger(__name__)

EVERY_S: Final = 300.0
AFTER_FAILURE_S: Final = 30.0
"""How soon the keys are fetched again if that has failed."""
ASK_AGAIN_S: Final = 30.0
"""How often unknown keys may cause a request."""
VALID_S: Final = 86_400.0
"""How long keys are valid after they were fetched."""


@final
class FetchedKeys:
    """Fulfils `KeySource` with the keys that an issuer publishes. They are fetched from `start`
    until `close`."""

    content = b""

    def __init__(self, name: str, fetch: Callable[[], Awaitable[KeySet]]) -> None:
        """`fetch` returns the keys, or raises FetchFailed. It ends by itself. `name` is for the
        log."""
        self._name = name
        self._fetch = fetch
        self._keys = NO_KEYS
        self._thumbprints: frozenset[str] = frozenset()
        self._on_withdrawn: Callable[[], None] | None = None
        self._valid_until = -1.0
        self._may_ask_at = -1.0
        self._failed = False
        self._fetching: asyncio.Task[None] | None = None
        self._repeating: asyncio.Task[None] | None = None
        self.fetched_at = 0.0

    def start(self, on_withdrawn: Callable[[], None]) -> None:
        if self._repeating is None:
            self._on_withdrawn = on_withdrawn
            self._repeating = asyncio.create_task(self._repeat())

    def close(self) -> None:
        for task in self._tasks():
            task.cancel()

    async def aclose(self) -> None:
        self.close()
        await asyncio.gather(*self._tasks(), return_exceptions=True)

    def _tasks(self) -> list[asyncio.Task[None]]:
        return [task for task in (self._repeating, self._fetching) if task is not None]

    def has_key(self, thumbprint: str) -> bool:
        return thumbprint in self._thumbprints

    async def find(self, algorithm: str, kid: str | None) -> Sequence[Key]:
        if not self._has(kid):
            await self._ask()
            if not self._has(kid) and (self._failed or not self._are_valid()):
                raise KeysUnavailable  # because the issuer may have this key
        return self._keys.find(algorithm, kid)

    def _has(self, kid: str | None) -> bool:
        return self._are_valid() and self._keys.has(kid)

    def _are_valid(self) -> bool:
        return asyncio.get_running_loop().time() < self._valid_until

    async def _ask(self) -> None:
        """Fetch the keys for a call, unless that has happened shortly before. If they are being
        fetched, wait for it."""
        now = asyncio.get_running_loop().time()
        if self._fetching is None:
            if now < self._may_ask_at:
                return
            self._may_ask_at = now + ASK_AGAIN_S
        await self._fetched()

    async def _repeat(self) -> None:
        while True:
            await self._fetched()
            await asyncio.sleep(AFTER_FAILURE_S if self._failed else EVERY_S)

    async def _fetched(self) -> None:
        """Fetch the keys, together with all others who want that now."""
        if self._fetching is None:
            self._fetching = asyncio.create_task(self._update())
        fetching = self._fetching
        await asyncio.wait([fetching])
        if fetching.cancelled():
            raise KeysUnavailable

    async def _update(self) -> None:
        try:
            keys = await self._fetch()
        except FetchFailed as error:
            if not self._failed:
                log.warning("keys cannot be fetched: %s", error, extra={"issuer": self._name})
            self._failed = True
        except Exception:
            log.exception("keys cannot be fetched", extra={"issuer": self._name})
            self._failed = True
        else:
            if self._failed:
                log.info("keys can be fetched again", extra={"issuer": self._name})
            self._failed = False
            self._valid_until = asyncio.get_running_loop().time() + VALID_S
            self.fetched_at = time.time()
            self._take(keys)
        finally:
            self._fetching = None
        if not self._are_valid():
            self._take(NO_KEYS)

    def _take(self, keys: KeySet) -> None:
        before, self._thumbprints = self._thumbprints, keys.thumbprints()
        self._keys = keys
        if before - self._thumbprints and self._on_withdrawn is not None:
            self._on_withdrawn()
