"""What it costs a write that the broker looks who calls: with a token, and without configuration.

`python -m bench.access` answers writes in one process, from the bytes of their requests and without
a socket, in turn by a broker without tokens and by one that requires them. It prints how many
microseconds of CPU time a write takes in each.
"""

import asyncio
import gc
import json
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from tempfile import TemporaryDirectory
from typing import Final

from bench.contestants import OURS, Contestant
from bench.processes import output_of, server_cores
from bench.report import MICROSECONDS, Figure, Target
from bench.rounds import Plan, progress
from megaphone.access.tokens import digest_of, new_token
from megaphone.app import App, running
from megaphone.cli.serve import new_event_loop
from megaphone.core.access import Peer
from megaphone.model import Action, AgentMode
from megaphone.rest.cors import Origins
from megaphone.rest.lane import Lane
from megaphone.settings import Auth, Settings, Token

WRITES: Final = 20_000
"""How many writes one round has."""
ROUNDS: Final = 5
TOKEN: Final = new_token()
AUTH: Final = Auth(
    require=(Action.CREATE, Action.WRITE),
    tokens={
        "shop": Token(
            sha256=digest_of(TOKEN),
            tenant="shop",
            actions=(Action.CREATE, Action.WRITE),
            streams=("orders.*", "news"),
        )
    },
)
LIMIT: Final = Target(1.0, at_most=True)
NOTE: Final = (
    "CPU time of a write through the lane, without a socket: the least of all rounds with a token,"
    " for a caller with a tenant and patterns of streams, minus that without any configuration"
)


@asynccontextmanager
async def broker(auth: Auth, socket_path: str) -> AsyncIterator[App]:
    settings = Settings(
        address="127.0.0.1:0",
        grpc_address="127.0.0.1:0",
        mng_socket_path=socket_path,
        agent={"node": AgentMode.MASTER},
        agent_warmup_secs=0,
        buffer_capacity=100_000,
        max_buffered_bytes=1 << 30,
        auth=auth,
    )
    async with running(settings) as app:
        yield app


class Writes:
    """Many writes to one new channel after the other."""

    def __init__(self, app: App, header: bytes) -> None:
        self._app = app
        self._lane = Lane(app.broker, app.doorkeeper, 1_048_576, Origins(()))
        self._header = header

    async def microseconds(self) -> float:
        """Return how long one of them takes."""
        caller = await self._app.doorkeeper.admit(proof_of(self._header), Peer("127.0.0.1"))
        channel = await self._app.broker.create(caller)
        request = (
            b"POST /write/%b/orders.eu HTTP/1.1\r\nHost: x\r\n%bContent-Type: application/json\r\n"
            b'Content-Length: 7\r\n\r\n{"n":1}' % (channel.producer_address.encode(), self._header)
        )
        answer, complete = self._lane.answer, self._lane.complete
        began = time.thread_time()
        for _ in range(WRITES):
            outcomes = [answer(request, ())]
            complete(outcomes)
        took_s = time.thread_time() - began
        assert isinstance(outcomes[0], bytes), outcomes
        await self._app.admin.dispose(channel.consumer_address)
        return took_s / WRITES * 1e6


def proof_of(header: bytes) -> str | None:
    return header.decode().strip().partition(": ")[2] or None


async def run() -> dict[str, float]:
    header = f"Authorization: Bearer {TOKEN}\r\n".encode()
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory())
        without = Writes(await stack.enter_async_context(broker(Auth(), f"{folder}/a")), b"")
        with_token = Writes(await stack.enter_async_context(broker(AUTH, f"{folder}/b")), header)
        rounds = [
            (await without.microseconds(), await with_token.microseconds()) for _ in range(ROUNDS)
        ]
    return {
        "a write without configuration": min(one for one, _ in rounds),
        "the check of a caller": min(one for _, one in rounds) - min(one for one, _ in rounds),
    }


async def measure(_contestants: Sequence[Contestant], plan: Plan) -> list[Figure]:
    progress("access: writes with and without a token")
    command = [sys.executable, "-m", "bench.access"]
    rounds = [
        json.loads(await output_of(command, server_cores())) for _ in range(plan.store_rounds)
    ]
    return [
        Figure(
            name="access",
            what=name,
            unit=MICROSECONDS,
            rounds={OURS: [one[name] for one in rounds]},
            target=LIMIT if number else None,
            notes=(NOTE,) if number else (),
        )
        for number, name in enumerate(rounds[0])
    ]


if __name__ == "__main__":
    gc.disable()
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        print(json.dumps(runner.run(run())))
