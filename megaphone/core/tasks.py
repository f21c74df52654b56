"""Tasks of one call, and limits of time.

These are functions, and not contexts, because compiled modules use them. mypyc loses an exception
that is being handled while a coroutine waits, and then the process may crash: so a compiled module
has no `async with`, and waits neither in `except` nor in `finally`.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol, TypeVar

CANCELLED_AT_ONCE = 200
"""How many tasks are cancelled before other tasks get a turn."""

Result = TypeVar("Result")
Returned = TypeVar("Returned")


class Start(Protocol):
    """Starts a task."""

    def __call__(self, work: Coroutine[Any, Any, Result], /) -> asyncio.Task[Result]: ...


async def with_tasks(work: Callable[[Start], Coroutine[Any, Any, Returned]]) -> Returned:
    """Do some work that starts tasks, and wait for these too, as in an `asyncio.TaskGroup`.

    If the call is cancelled, it cancels the tasks in slices.

    Returns: what the work returns.
    """
    tasks: list[asyncio.Task[Any]] = []

    def start(work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        task = group.create_task(work)
        tasks.append(task)
        return task

    async with asyncio.TaskGroup() as group:
        try:
            result = await work(start)
            if tasks:
                await asyncio.wait(tasks)
        except asyncio.CancelledError:
            for number, task in enumerate(tasks, start=1):
                task.cancel()
                if number % CANCELLED_AT_ONCE == 0:
                    await asyncio.sleep(0)
            raise
    return result


async def within(seconds: float, work: Awaitable[object]) -> None:
    """Wait for something, but no longer than some time, after which it is cancelled."""
    try:
        async with asyncio.timeout(seconds):
            await work
    except TimeoutError:
        pass
