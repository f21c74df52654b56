"""What it costs a write that the broker looks who calls, and how much that tenant may.

`python -m bench.access` answers writes in one process, from the bytes of their requests and without
a socket, in turn by a broker without configuration, by one that requires tokens, and by one where
the tenant of the token also has limits. It prints how many microseconds of CPU time a write takes
in the first, and how many more in the others.
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
from megaphone.settings import Auth, Settings, TenantLimits, Token

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
LIMITS: Final = {
    "shop": TenantLimits(
        creates_per_s=1e6,
        channels=1_000_000,
        reads=1_000_000,
        writes_per_s=1e9,
        bytes_per_s=1e12,
        buffered_bytes=1 << 40,
    )
}
LIMIT: Final = Target(1.0, at_most=True)
PLAIN: Final = "a write without configuration"
CHECK: Final = "the check of a caller"
COUNTS: Final = "the limits of a tenant"
NOTES: Final = {
    CHECK: (
        "CPU time of a write through the lane, without a socket: the least of all rounds with a"
        " token, for a caller with a tenant and patterns of streams, minus that without any"
        " configuration"
    ),
    COUNTS: (
        "CPU time of a write through the lane, without a socket: the least of all rounds with a"
        " token whose tenant has every limit, minus that with a token alone"
    ),
}


@asynccontextmanager
async def broker(
    socket_path: str, auth: Auth, tenants: dict[str, TenantLimits]
) -> AsyncIterator[App]:
    settings = Settings(
        address="127.0.0.1:0",
        grpc_address="127.0.0.1:0",
        mng_socket_path=socket_path,
        agent={"node": AgentMode.MASTER},
        agent_warmup_secs=0,
        buffer_capacity=100_000,
        max_buffered_bytes=1 << 30,
        auth=auth,
        tenants=tenants,
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
            complete(outcomes, time.monotonic())
        took_s = time.thread_time() - began
        assert isinstance(outcomes[0], bytes), outcomes
        await self._app.admin.dispose(channel.consumer_address)
        return took_s / WRITES * 1e6


def proof_of(header: bytes) -> str | None:
    return header.decode().strip().partition(": ")[2] or None


async def run() -> dict[str, float]:
    header = f"Authorization: Bearer {TOKEN}\r\n".encode()
    kinds: list[tuple[Auth, dict[str, TenantLimits], bytes]] = [
        (Auth(), {}, b""),
        (AUTH, {}, header),
        (AUTH, LIMITS, header),
    ]
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory())
        writes = [
            Writes(await stack.enter_async_context(broker(f"{folder}/{n}", auth, tenants)), sent)
            for n, (auth, tenants, sent) in enumerate(kinds)
        ]
        # In turn, so that what else the machine does falls on all alike.
        rounds = [[await one.microseconds() for one in writes] for _ in range(ROUNDS)]
    plain, with_token, with_limits = map(min, zip(*rounds, strict=True))
    return {PLAIN: plain, CHECK: with_token - plain, COUNTS: with_limits - with_token}


async def measure(_contestants: Sequence[Contestant], plan: Plan) -> list[Figure]:
    progress("access: writes with and without a token, and with limits")
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
            target=LIMIT if name in NOTES else None,
            notes=(NOTES[name],) if name in NOTES else (),
        )
        for name in rounds[0]
    ]


if __name__ == "__main__":
    gc.disable()
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        print(json.dumps(runner.run(run())))
