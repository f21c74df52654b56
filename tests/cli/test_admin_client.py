"""The errors that an operator gets when a call of the admin API fails without an answer."""

import asyncio
import errno
import os
from pathlib import Path

import pytest

from megaphone.cli import admin_client
from megaphone.cli.admin_client import CallFailed, call, cannot_connect, follow


def test_a_socket_of_another_user_is_reported() -> None:
    error = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    assert cannot_connect("/run/m.sock", error) == (
        "permission denied for /run/m.sock: only the owner of the broker may use it"
    )


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"SSH-2.0\r\n", "does not answer as a broker"),
        (b"", "does not answer as a broker"),
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 2\r\n\r\n{}", "HTTP status 502"),
        (None, "did not answer within 0.3 s"),
    ],
)
async def test_a_server_that_is_no_broker_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes | None, told: str
) -> None:
    monkeypatch.setattr(admin_client, "ANSWERS_WITHIN_S", 0.3)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if answer is None:
            await reader.read()
        else:
            writer.write(answer)
        writer.close()

    path = str(tmp_path / "m.sock")
    async with await asyncio.start_unix_server(serve, path):
        with pytest.raises(CallFailed, match=told):
            await asyncio.to_thread(call, path, "GET", "/vagent/list")


async def test_an_answer_that_breaks_off_is_no_whole_one(tmp_path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{}\n\r\n")
        writer.close()

    path = str(tmp_path / "m.sock")
    async with await asyncio.start_unix_server(serve, path):
        lines = follow(path, "POST", "/node/drain")
        assert await asyncio.to_thread(next, lines) == b"{}\n"
        with pytest.raises(CallFailed, match="is not there any more"):
            await asyncio.to_thread(list, lines)
