"""Calls the management API of a broker on its Unix socket."""

import asyncio

import aiohttp
import msgspec
from yarl import URL

ORIGIN = "http://megaphone"
"""Some host, as HTTP wants one: the socket decides who answers."""
ANSWERS_WITHIN_S = 30.0


class CallFailed(Exception):
    """A call without the answer that was asked for. One line, for the operator."""


class Refusal(msgspec.Struct):
    """What a broker says when it refuses."""

    code: str
    message: str


def call(socket_path: str, method: str, route: str, body: object = None) -> bytes:
    """Return the body of the broker's answer. Raises: CallFailed."""
    try:
        return asyncio.run(answer(socket_path, method, route, body))
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
    async with aiohttp.ClientSession(
        connector=aiohttp.UnixConnector(path=socket_path),
        timeout=aiohttp.ClientTimeout(total=ANSWERS_WITHIN_S),
    ) as session:
        url = URL(f"{ORIGIN}{route}", encoded=True)
        async with session.request(method, url, json=body) as response:
            content = await response.read()
    if not response.ok:
        raise CallFailed(refusal(response.status, content))
    return content


def refusal(status: int, content: bytes) -> str:
    try:
        told = msgspec.json.decode(content, type=Refusal)
    except msgspec.DecodeError:
        return f"the broker answers with the HTTP status {status}"
    return f"{told.code}: {told.message}"


def cannot_connect(socket_path: str, error: OSError) -> str:
    other = "--path names another socket"
    match error:
        case PermissionError():
            return f"permission denied for {socket_path}: only the owner of the broker may use it"
        case FileNotFoundError() | ConnectionRefusedError():
            return f"no broker serves at {socket_path}; {other}"
        case _:
            return f"cannot connect to {socket_path}: {error.strerror or error}; {other}"
