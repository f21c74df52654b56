"""An address means the same for HTTP and for gRPC."""

import asyncio
import socket

import pytest

from megaphone.app import running
from megaphone.listen.sockets import bound_as
from megaphone.model import Endpoint
from tests.support.settings import fast_settings

HERE = {"IPv4": "127.0.0.1", "IPv6": "::1"}
BOTH = {"IPv4", "IPv6"}


async def families_that_reach(port: int) -> set[str]:
    reached = set()
    for name, host in HERE.items():
        try:
            _, writer = await asyncio.open_connection(host, port)
        except OSError:
            continue
        writer.close()
        reached.add(name)
    return reached


@pytest.mark.parametrize(
    ("host", "families"),
    [
        ("127.0.0.1", {"IPv4"}),
        ("[::1]", {"IPv6"}),
        ("0.0.0.0", BOTH),
        ("[::]", BOTH),
        ("localhost", {"IPv4"}),
    ],
)
async def test_the_same_families_reach_both_faces(host: str, families: set[str]) -> None:
    settings = fast_settings(address=f"{host}:0", grpc_address=f"{host}:0", ops_address=f"{host}:0")
    async with running(settings) as app:
        for port in (app.http_port, app.grpc_port, app.ops_port):
            assert port is not None
            assert await families_that_reach(port) == families


def test_without_ipv6_every_address_is_every_address_of_ipv4(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    assert bound_as(Endpoint("0.0.0.0", 1)) == (socket.AF_INET, "0.0.0.0")


def test_a_name_without_an_address_cannot_be_listened_on() -> None:
    with pytest.raises(OSError, match=r"(?i)name"):
        bound_as(Endpoint("nobody.invalid", 1))
