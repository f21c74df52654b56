"""Calls that are tried again until they succeed, fail for good, or have no time left."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from megaphone_client.errors import MegaphoneError, OutcomeUnknown, may_be_done
from megaphone_client.state import Backoff

T = TypeVar("T")


async def repeated(
    call: Callable[[float], Awaitable[T]],
    timeout_s: float,
    *,
    is_repeatable: bool = True,
    is_write: bool = True,
) -> T:
    """Return the answer to a call. It gets the time that is left, in seconds.

    `is_repeatable` says that a second try has no second effect; without it, a call that may have
    had its effect is not tried again. `is_write` says that it matters whether it had its effect.

    Raises: the last error. OutcomeUnknown, if a try of a write may have had its effect.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + timeout_s
    backoff = Backoff()
    is_unknown = False
    while True:
        begun = loop.time()
        try:
            return await call(max(0.001, until - begun))
        except MegaphoneError as error:
            is_unknown = is_unknown or (is_write and may_be_done(error))
            wait_s = backoff.next_s(error.retry_after_s)
            may_repeat = error.may_heal and (is_repeatable or not may_be_done(error))
            # A try that is likely to get no answer in time would only make the outcome unknown.
            took_s = loop.time() - begun
            if not may_repeat or loop.time() + wait_s + took_s >= until:
                if is_unknown:
                    raise OutcomeUnknown(f"it may have been done: {error}") from error
                raise
            await asyncio.sleep(wait_s)
