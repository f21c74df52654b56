"""Who is measured: our broker, and others that do the same work. Each runs on one core."""

import os
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import bare, nginx
from bench.processes import BenchError
from bench.servers import Broker, Server, broker
from tests import compiled
from tests.compat.original import BROKER as ORIGINAL_PROGRAM
from tests.compat.original import VERSION
from tests.support.redis_server import KINDS, redis_server

OURS = "ours"
COMPILED = "compiled"
BEFORE = "before"
ORIGINAL = "original"
NGINX = "nginx"
REDIS = "redis"
NCHAN = "nchan"
BARE = "grpc.aio"
BROKERS = frozenset({OURS, COMPILED, BEFORE, ORIGINAL, REDIS})
OUR_SETTINGS: Mapping[str, object] = {"max_channels": 1_000_000}
ORIGINAL_SETTINGS: Mapping[str, object] = {"agent.virtual.bench": "MASTER"}


@dataclass(frozen=True, slots=True)
class Contestant:
    name: str
    what: str
    start: Callable[[], AbstractAsyncContextManager[Server]]


# -- Brokers


def our_broker() -> AbstractAsyncContextManager[Broker]:
    program = Path(sys.executable).with_name("megaphone")
    return broker([str(program), "serve"], OUR_SETTINGS)


def our_compiled_broker() -> AbstractAsyncContextManager[Broker]:
    program = compiled.HOME / "bin" / "megaphone"
    return broker([str(program), "serve"], OUR_SETTINGS)


def missing_compiled() -> str | None:
    if compiled.is_built():
        return None
    return "`make test-compiled ARGS=tests/test_build.py` has not built it from this code"


@asynccontextmanager
async def our_broker_with_redis() -> AsyncIterator[Broker]:
    """Run our broker with its channels in a Redis, which shares the core of the load."""
    program = Path(sys.executable).with_name("megaphone")
    with redis_server() as server:
        settings = {**OUR_SETTINGS, "store": server.text_url}
        async with broker([str(program), "serve"], settings) as started:
            yield started


def missing_redis() -> str | None:
    return None if any(KINDS.values()) else "neither Redis nor Valkey is installed"


def before(checkout: Path) -> Contestant:
    """Raises: BenchError, if the checkout is not set up."""
    program = checkout.resolve() / ".venv" / "bin" / "megaphone"
    if not program.exists():
        raise BenchError(f"{program} does not exist; `make setup` there makes it")
    return Contestant(
        BEFORE,
        f"this broker as it is in {checkout}",
        lambda: broker([str(program), "serve"], OUR_SETTINGS),
    )


def missing_original() -> str | None:
    is_built = os.access(ORIGINAL_PROGRAM, os.X_OK)
    return None if is_built else "`python -m tests.compat.build` has not built it"


# -- The choice


@dataclass(frozen=True, slots=True)
class Other:
    contestant: Contestant
    missing: Callable[[], str | None]
    """Returns the reason why it cannot take part here; None if it can."""


OUR_CONTESTANT = Contestant(OURS, "this broker, of interpreted code", our_broker)
OTHERS = {
    other.contestant.name: other
    for other in (
        Other(
            Contestant(COMPILED, "this broker, of the compiled wheel", our_compiled_broker),
            missing_compiled,
        ),
        Other(
            Contestant(
                ORIGINAL,
                f"the Rust broker {VERSION}",
                lambda: broker([str(ORIGINAL_PROGRAM)], ORIGINAL_SETTINGS),
            ),
            missing_original,
        ),
        Other(
            Contestant(REDIS, "this broker, its channels in Redis", our_broker_with_redis),
            missing_redis,
        ),
        Other(
            Contestant(NGINX, "nginx with a constant answer, the ceiling", nginx.constants),
            nginx.missing,
        ),
        Other(
            Contestant(NCHAN, "nchan, a broker in C within nginx", nginx.nchan),
            nginx.missing_nchan,
        ),
        Other(
            Contestant(BARE, "a bare gRPC server in Python, the ceiling", bare.started),
            lambda: None,
        ),
    )
}


def chosen(names: Sequence[str], checkout: Path | None) -> tuple[list[Contestant], list[str]]:
    """Return our broker with those of the others that can take part, and why the rest cannot.

    Raises: BenchError, if the checkout is not set up.
    """
    absent = {name: reason for name in names if (reason := OTHERS[name].missing())}
    contestants = [OUR_CONTESTANT]
    if checkout is not None:
        contestants.append(before(checkout))
    contestants += [OTHERS[name].contestant for name in names if name not in absent]
    return contestants, [f"{name} does not take part: {why}" for name, why in absent.items()]
