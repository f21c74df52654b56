"""HTTP connections to a broker in this process, and its metrics."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

from megaphone.app import App
from tests.support import leaks
from tests.support.raw_http import Connection, Head, Node, receive_head


@asynccontextmanager
async def connected_to(
    http_port: int, count: int = 1, *, receive_buffer: int | None = None
) -> AsyncIterator[list[Connection]]:
    async with AsyncExitStack() as stack:
        made = []
        for _ in range(count):
            node = Node(http_port, 0)
            made.append(await Connection.open(node, receive_buffer=receive_buffer))
            stack.callback(made[-1].close)
        yield made


def connected(app: App, count: int = 1) -> AbstractAsyncContextManager[list[Connection]]:
    return connected_to(app.http_port, count)


async def answer_of(connection: Connection, request: bytes = b"") -> tuple[Head, bytes]:
    if request:
        await connection.send(request)
    head = await receive_head(connection)
    return head, await connection.receive_exactly(int(head.headers["content-length"]))


async def metric(app: App, name: str) -> int:
    text = app.metrics.render().decode()
    leaks.check(text, "the metrics")
    for line in text.splitlines():
        if line.startswith((f"{name} ", f"{name}{{")):
            return int(line.rpartition(" ")[2])
    raise AssertionError(f"no {name}")
