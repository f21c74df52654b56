"""HTTP connections to a broker in this process, and its metrics."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from megaphone.app import App
from tests.support.raw_http import Connection, Head, Node, receive_head


@asynccontextmanager
async def connected(app: App, count: int = 1) -> AsyncIterator[list[Connection]]:
    async with AsyncExitStack() as stack:
        made = []
        for _ in range(count):
            made.append(await Connection.open(Node(app.http_port, app.grpc_port)))
            stack.callback(made[-1].close)
        yield made


async def answer_of(connection: Connection, request: bytes = b"") -> tuple[Head, bytes]:
    if request:
        await connection.send(request)
    head = await receive_head(connection)
    return head, await connection.receive_exactly(int(head.headers["content-length"]))


async def metric(app: App, name: str) -> int:
    for line in app.metrics.render().decode().splitlines():
        if line.startswith(f"{name} "):
            return int(line.split()[1])
    raise AssertionError(f"no {name}")
