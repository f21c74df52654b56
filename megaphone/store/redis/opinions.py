"""Asking several servers the same at once."""

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any, TypeVar

OTHERS_S = 0.3
"""How long the others have to answer when one has."""

Answer = TypeVar("Answer")


async def opinions_of(
    questions: Iterable[Coroutine[Any, Any, Answer]],
) -> tuple[Sequence[Answer], Sequence[BaseException]]:
    """Wait until one question is answered, and then a little for the others.

    Returns: the answers, and the errors of the questions that failed.
    """
    asked = {asyncio.create_task(one) for one in questions}
    try:
        done = await _first_answers(asked)
    finally:
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
    errors = [error for task in done if (error := task.exception()) is not None]
    return [task.result() for task in done if task.exception() is None], errors


async def _first_answers(asked: set[asyncio.Task[Answer]]) -> set[asyncio.Task[Answer]]:
    pending = asked
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        if any(task.exception() is None for task in done):
            break
    if pending:
        await asyncio.wait(pending, timeout=OTHERS_S)
    return {task for task in asked if task.done()}
