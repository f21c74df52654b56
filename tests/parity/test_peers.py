"""The limits of callers at one address are the same through both faces."""

import asyncio

import pytest

from megaphone.access.tokens import digest_of
from megaphone.app import App
from megaphone.core.access import Action
from megaphone.errors import BadRequest, MegaphoneError, RateLimited, Unauthenticated
from megaphone.model import ChannelOptions
from megaphone.rest.connection.limits import SPARE
from megaphone.settings import Auth, TenantLimits, Token
from tests.support.faces import Face, GrpcFace, HttpFace

pytestmark = pytest.mark.timeout(60)

SELDOM = 0.01
TOKEN = f"mgp_{'s' * 43}"
OWNER = Token(sha256=digest_of(TOKEN), actions=tuple(Action))


def behind_proxy(face: Face, client: str) -> Face:
    """Return the same client, as a proxy says that it has another address."""
    if isinstance(face, HttpFace):
        return HttpFace(face.session, face.port, face.scheme, {"X-Forwarded-For": client})
    assert isinstance(face, GrpcFace)
    return GrpcFace(face.channel, (("x-forwarded-for", client),))


@pytest.mark.settings(creates_per_s_per_ip=SELDOM, auth=Auth(tokens={"shop": OWNER}))
async def test_callers_without_a_token_create_as_often_as_their_address_may(
    app: App, face: Face
) -> None:
    with pytest.raises(BadRequest):  # which is not counted
        await face.create((), ChannelOptions(capacity=10**8))
    await face.create()
    for caller in (face, behind_proxy(face, "192.0.2.1")):  # who is no proxy that is trusted
        with pytest.raises(RateLimited, match="from one address"):
            await caller.create()
    await face.authorized(f"Bearer {TOKEN}").create()
    assert app.metrics.refusals == {("default", "creates_per_s_per_ip"): 2}


@pytest.mark.settings(
    creates_per_s_per_ip=SELDOM,
    trusted_proxies=("127.0.0.0/8",),
    tenants={"default": TenantLimits(creates_per_s=100)},
)
async def test_the_address_is_that_which_a_trusted_proxy_says(face: Face) -> None:
    for client in ("192.0.2.1", "192.0.2.2, 192.0.2.3", "2001:db8::1"):
        await behind_proxy(face, client).create()
    for client in ("192.0.2.1", "192.0.2.3", "2001:db8::2"):
        with pytest.raises(RateLimited):
            await behind_proxy(face, client).create()
    await behind_proxy(face, "192.0.2.2").create()


@pytest.mark.settings(
    auth_failures_per_s=SELDOM,
    trusted_proxies=("127.0.0.1",),
    auth=Auth(require=(Action.CREATE,), tokens={"shop": OWNER}),
)
async def test_an_address_at_which_tokens_were_refused_may_try_no_more(face: Face) -> None:
    with pytest.raises(Unauthenticated):  # no token is no failure
        await face.create()
    with pytest.raises(Unauthenticated):
        await face.authorized("Bearer wrong").create()
    for token in ("wrong", "another", TOKEN):
        with pytest.raises(RateLimited, match="auth_failures_per_s"):
            await face.authorized(f"Bearer {token}").create()
    with pytest.raises(Unauthenticated):
        await face.create()


@pytest.mark.settings(
    auth_failures_per_s=SELDOM, auth=Auth(require=(Action.CREATE,), tokens={"shop": OWNER})
)
async def test_a_token_that_is_known_goes_on_whatever_else_was_refused(face: Face) -> None:
    owner = face.authorized(f"Bearer {TOKEN}")
    await owner.create()
    codes = []
    for token in ("one", "two", "three"):
        try:
            await face.authorized(f"Bearer {token}").create()
        except MegaphoneError as error:
            codes.append(error.code)
    assert codes == ["UNAUTHENTICATED", "RATE_LIMITED", "RATE_LIMITED"]
    await owner.create()


@pytest.mark.settings(max_connections_per_ip=2)
async def test_an_address_has_as_many_connections_as_it_may(app: App) -> None:
    async def answer(begin: bytes = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n") -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", app.http_port)
        writers.append(writer)
        writer.write(begin)
        return await asyncio.wait_for(reader.read(300), 5)

    async def ask(path: bytes) -> bytes:
        return await answer(b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n" % path)

    writers: list[asyncio.StreamWriter] = []
    assert [b" 200 " in await answer() for _ in range(2)] == [True, True]
    refused = await ask(b"/create")
    assert b" 429 " in refused
    assert b"max_connections_per_ip" in refused
    probed = await answer()
    assert b" 200 " in probed
    assert b"Connection: close" in probed
    writers[0].close()
    await writers[0].wait_closed()
    for _ in range(100):
        if b" 200 " in await ask(b"/create"):
            break
        await asyncio.sleep(0.05)
    else:
        pytest.fail("the connection that ended still counts")
    for writer in writers:
        writer.close()


@pytest.mark.settings(max_connections_per_ip=1)
async def test_beyond_those_for_probes_an_address_is_refused_at_once(app: App) -> None:
    opened = [await asyncio.open_connection("127.0.0.1", app.http_port) for _ in range(1 + SPARE)]
    reader, writer = await asyncio.open_connection("127.0.0.1", app.http_port)
    answer = await asyncio.wait_for(reader.read(300), 5)
    assert b" 429 " in answer
    assert b"max_connections_per_ip" in answer
    for _, one in (*opened, (reader, writer)):
        one.close()


@pytest.mark.settings(max_connections_per_ip=1, trusted_proxies=("127.0.0.1",))
async def test_a_proxy_has_as_many_connections_as_it_wants(app: App) -> None:
    connections = [await asyncio.open_connection("127.0.0.1", app.http_port) for _ in range(5)]
    for reader, writer in connections:
        writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b" 200 " in await asyncio.wait_for(reader.read(300), 5)
        writer.close()
