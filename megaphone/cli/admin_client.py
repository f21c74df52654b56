"""Calls the admin API of a broker on its Unix socket."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import TypeVar

import aiohttp
import msgspec
from aiohttp.client_proto import ResponseHandler
from aiohttp.tracing import Trace
from yarl import URL

from megaphone.listen.sockets import check_owner, check_peer

ORIGIN = "http://megaphone"
"""HTTP requires a host. Any will do, because the socket decides which broker answers."""
ANSWERS_WITHIN_S = 30.0


T = TypeVar("T")


class CallFailed(Exception):
    """A call failed. The text is one line for the operator."""


class Refusal(msgspec.Struct):
    """The answer of a broker that refuses a call."""

    code: str
    message: str


def call(socket_path: str, method: str, route: str, body: object = None) -> bytes:
    """Return the body of the broker's answer. Raises: CallFailed."""
    return run_call(socket_path, answer(socket_path, method, route, body))


def follow(socket_path: str, route: str, body: object, on_line: Callable[[bytes], None]) -> None:
    """Make a call that takes long, and pass each line of its answer to `on_line` as it comes.

    Raises: CallFailed.
    """
    run_call(socket_path, pass_lines(socket_path, route, body, on_line))


def run_call(socket_path: str, calling: Coroutine[object, object, T]) -> T:
    try:
        return asyncio.run(calling)
    except TimeoutError:
        raise CallFailed(
            f"the broker at {socket_path} did not answer within {ANSWERS_WITHIN_S:g} s"
        ) from None
    except aiohttp.ClientConnectorError as error:
        raise CallFailed(cannot_connect(socket_path, error.os_error)) from None
    except OSError as error:
        raise CallFailed(cannot_connect(socket_path, error)) from None
    except aiohttp.ClientError as error:
        raise CallFailed(f"what is at {socket_path} does not answer as a broker: {error}") from None


async def answer(socket_path: str, method: str, route: str, body: object) -> bytes:
    async with (
        asyncio.timeout(ANSWERS_WITHIN_S),
        response_to(socket_path, method, route, body) as response,
    ):
        return await response.read()


async def pass_lines(
    socket_path: str, route: str, body: object, on_line: Callable[[bytes], None]
) -> None:
    async with response_to(socket_path, "POST", route, body) as response:
        async for line in response.content:
            if is_refusal(line):
                raise CallFailed(refusal(response.status, line))
            on_line(line)


@asynccontextmanager
async def response_to(
    socket_path: str, method: str, route: str, body: object
) -> AsyncIterator[aiohttp.ClientResponse]:
    """Return a context with the response to a call. Raises: CallFailed, if it is an error."""
    check_owner(socket_path, *trusted_users())
    async with aiohttp.ClientSession(
        connector=TrustingConnector(path=socket_path),
        timeout=aiohttp.ClientTimeout(sock_read=ANSWERS_WITHIN_S),
    ) as session:
        url = URL(f"{ORIGIN}{route}", encoded=True)
        async with session.request(method, url, json=body) as response:
            if not response.ok:
                raise CallFailed(refusal(response.status, await response.read()))
            yield response


class TrustingConnector(aiohttp.UnixConnector):
    """Connects only to brokers of trusted users."""

    async def _create_connection(
        self, req: aiohttp.ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout
    ) -> ResponseHandler:
        handler = await super()._create_connection(req, traces, timeout)
        try:
            assert handler.transport is not None
            connected = handler.transport.get_extra_info("socket")
            check_peer(connected, self.path, *trusted_users())
        except BaseException:
            handler.close()
            raise
        return handler


def trusted_users() -> tuple[int, ...]:
    """Return this user and root, because root may use every socket anyway."""
    return os.geteuid(), 0


def is_refusal(line: bytes) -> bool:
    try:
        msgspec.json.decode(line, type=Refusal)
    except msgspec.DecodeError:
        return False
    return True


def refusal(status: int, content: bytes) -> str:
    try:
        refused = msgspec.json.decode(content, type=Refusal)
    except msgspec.DecodeError:
        return f"the broker answers with the HTTP status {status}"
    return f"{refused.code}: {refused.message}"


def cannot_connect(socket_path: str, error: OSError) -> str:
    other = "--path names another socket"
    match error:
        case PermissionError():
            return f"permission denied for {socket_path}: only the owner of the broker may use it"
        case FileNotFoundError() | ConnectionRefusedError():
            return f"no broker serves at {socket_path}; {other}"
        case _:
            return f"cannot connect to {socket_path}: {error.strerror or error}; {other}"
