"""The certificate changes while clients of both faces read and write."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import aiohttp
import grpc
import pytest

from megaphone.access.tokens import digest_of
from megaphone.app import App, running
from megaphone.core.access import Caller, Peer
from megaphone.errors import MegaphoneError
from megaphone.model import Action, ReadOptions
from megaphone.rest.callers import Callers
from megaphone.settings import Auth, ClientCertificates, Settings, Token
from megaphone_api.v1 import channels_pb2 as pb
from tests.support.certificates import Authority, Certificates
from tests.support.faces import Created, Face, GrpcFace, HttpFace, OpenRead, read_all, take
from tests.support.scenes import numbers
from tests.support.settings import IS_LONG, fast_settings

READS = 500 if IS_LONG else 10
"""How many reads are open on each face."""
RELOADS = 100 if IS_LONG else 10

pytestmark = pytest.mark.timeout(600 if IS_LONG else 60)


@asynccontextmanager
async def http_client(
    app: App, trusted: bytes, client: Certificates | None = None
) -> AsyncIterator[HttpFace]:
    context = ssl.create_default_context(cadata=trusted.decode())
    if client is not None:
        context.load_cert_chain(client.certificate, client.key)
    connector = aiohttp.TCPConnector(ssl=context, limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        yield HttpFace(session, app.http_port, "https")


@asynccontextmanager
async def grpc_client(
    app: App, trusted: bytes, client: Certificates | None = None
) -> AsyncIterator[GrpcFace]:
    own = () if client is None else (client.key.read_bytes(), client.certificate.read_bytes())
    # Without the option, channels with the same credentials share their connections.
    async with grpc.aio.secure_channel(
        f"127.0.0.1:{app.grpc_port}",
        grpc.ssl_channel_credentials(trusted, *own),
        options=[("grpc.use_local_subchannel_pool", 1)],
    ) as channel:
        yield GrpcFace(channel)


Client = Callable[
    [App, bytes, Certificates | None], AbstractAsyncContextManager[HttpFace | GrpcFace]
]
CLIENTS: dict[str, Client] = {"http": http_client, "grpc": grpc_client}


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


async def reload(app: App, change: Callable[[Settings], Settings] = lambda same: same) -> bool:
    return await app.reloader.reload(change)


async def serves(app: App, trusted: bytes, name: str, client: Certificates | None = None) -> bool:
    """Return whether a new connection can be made to a face."""
    try:
        async with CLIENTS[name](app, trusted, client) as face, asyncio.timeout(10):
            if isinstance(face, GrpcFace):
                await face.stub.CreateChannel(pb.CreateChannelRequest())
            else:
                await face.create()
    except (aiohttp.ClientConnectionError, grpc.aio.AioRpcError):
        return False
    return True


async def test_no_open_read_notices_that_the_certificate_changes(authority: Authority) -> None:
    made = authority.issue()
    trusted = authority.file.read_bytes()
    settings = fast_settings(tls=made.tls, poll_duration_millis=600_000)
    async with AsyncExitStack() as stack:
        app = await stack.enter_async_context(running(settings))
        reads: list[tuple[Face, Created, OpenRead]] = []
        for name, client in CLIENTS.items():
            for number in range(READS):
                if number % 50 == 0:  # streams of a connection
                    face: Face = await stack.enter_async_context(client(app, trusted, None))
                channel = await face.create()
                read = await stack.enter_async_context(face.read(channel.consumer))
                reads.append((face, channel, read))
            assert len(reads) % READS == 0, name
        for round_ in range(RELOADS):
            authority.issue(days=2 + round_)
            assert await reload(app)
            for face, channel, read in reads[round_ :: max(1, RELOADS // 5)]:
                await face.write(channel.producer, "s", b"%d" % round_)
                assert numbers(await take(read, 1)) == [round_]
            for name in CLIENTS:
                assert await serves(app, trusted, name)
        assert app.metrics.reads_open == len(reads)
        count = f'megaphone_certificate_reloads_total{{outcome="success"}} {RELOADS}\n'
        assert count in app.metrics.render().decode()


@pytest.mark.parametrize("name", CLIENTS)
async def test_new_connections_get_the_new_certificate(
    authority: Authority, name: str, tmp_path: Path
) -> None:
    made = authority.issue()
    trusted = authority.file.read_bytes()
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other")
    async with running(fast_settings(tls=made.tls)) as app:
        assert await serves(app, trusted, name)
        theirs = other.issue()
        made.certificate.write_bytes(theirs.certificate.read_bytes())
        assert not await reload(app)  # the key is still that of the first
        assert await serves(app, trusted, name)
        made.key.write_bytes(theirs.key.read_bytes())
        assert await reload(app)
        assert not await serves(app, trusted, name)
        assert await serves(app, other.file.read_bytes(), name)


@pytest.mark.parametrize("name", CLIENTS)
async def test_the_authority_of_clients_changes(
    authority: Authority, name: str, tmp_path: Path
) -> None:
    made = authority.issue()
    trusted = authority.file.read_bytes()
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other")
    first, second = authority.issue("first"), other.issue("second")
    async with running(fast_settings(tls=made.tls_for_known_clients)) as app:
        assert not await serves(app, trusted, name)
        assert await serves(app, trusted, name, first)
        assert not await serves(app, trusted, name, second)
        async with CLIENTS[name](app, trusted, first) as face:
            channel = await face.create()
            async with face.read(channel.consumer) as read:
                await face.write(channel.producer, "s", b"1")
                assert numbers(await take(read, 1)) == [1]
                tls = replace(made.tls, client_ca=str(other.file))
                assert await reload(app, lambda present: replace(present, tls=tls))
                assert not await serves(app, trusted, name, first)
                assert await serves(app, trusted, name, second)
                async with CLIENTS[name](app, trusted, second) as writer:
                    await writer.write(channel.producer, "s", b"2")
                assert numbers(await take(read, 1)) == [2]


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize("name", CLIENTS)
async def test_the_doorkeeper_hears_who_is_at_the_other_end(
    authority: Authority, name: str, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = authority.issue()
    trusted = authority.file.read_bytes()
    names = ("spiffe://example.org/shop", "shop.example.org")
    client = authority.issue("client", names=(*names, "192.0.2.1"))
    settings = fast_settings(
        address=f"{host}:0",
        grpc_address=f"{host}:0",
        tls=made.tls_for_known_clients,
        auth=Auth(require=(Action.CREATE,)),
    )
    peers: list[Peer] = []
    async with running(settings) as app:
        admit = app.doorkeeper.admit

        async def noted(proof: str | None, peer: Peer) -> Caller:
            peers.append(peer)
            return await admit(proof, peer)

        monkeypatch.setattr(app.doorkeeper, "admit", noted)
        async with CLIENTS[name](app, trusted, client) as face:
            if isinstance(face, HttpFace):
                async with face.session.post(
                    face.url("/create"), headers={"Authorization": "Bearer x"}
                ) as answer:
                    assert answer.status == 401
            else:
                with pytest.raises(grpc.aio.AioRpcError):
                    await face.stub.CreateChannel(
                        pb.CreateChannelRequest(), metadata=[("authorization", "Bearer x")]
                    )
    assert peers == [Peer("127.0.0.1", names)]


SHOP = "spiffe://example.org/shop/checkout"
GROUPS = {
    "shop": ClientCertificates(
        names=("spiffe://example.org/shop/*",),
        tenant="acme",
        actions=(Action.CREATE, Action.WRITE),
        streams=("orders.*",),
    ),
    "ops": ClientCertificates(names=("ops.example.org",), actions=tuple(Action)),
}
SHORT = ReadOptions(wait_s=0)
TOKEN = "mgp_" + "t" * 43


async def code_of(call: Awaitable[object]) -> str:
    try:
        await call
    except MegaphoneError as error:
        return error.code
    return "OK"


@pytest.mark.parametrize("name", CLIENTS)
async def test_a_certificate_says_who_calls_and_a_token_counts_instead(
    authority: Authority, name: str
) -> None:
    made = authority.issue()
    trusted = authority.file.read_bytes()
    clients = {
        "shop": authority.issue("shop", names=(SHOP,)),
        "ops": authority.issue("ops", names=("x", "OPS.example.org")),
        "stranger": authority.issue("stranger", names=("spiffe://example.org/other",)),
    }
    reader = Token(sha256=digest_of(TOKEN), actions=(Action.READ,), tenant="acme")
    auth = Auth(require=tuple(Action), certificates=GROUPS, tokens={"reader": reader})
    settings = fast_settings(tls=made.tls_for_known_clients, auth=auth)
    async with AsyncExitStack() as stack:
        app = await stack.enter_async_context(running(settings))
        faces = {
            client: await stack.enter_async_context(CLIENTS[name](app, trusted, certificate))
            for client, certificate in clients.items()
        }
        shop, ops, stranger = faces["shop"], faces["ops"], faces["stranger"]
        channel = await shop.create()
        for _ in range(2):  # the second time the caller is known
            await shop.write(channel.producer, "orders.eu", b"1")
            codes = [
                await code_of(shop.write(channel.producer, "news", b"1")),
                await code_of(shop.exists([channel.consumer])),
                await code_of(stranger.create()),
                await code_of(ops.create()),
                await code_of(ops.write(channel.producer, "orders.eu", b"1")),
                await code_of(ops.authorized("Basic eDp5").create()),
                await code_of(ops.authorized(f"Bearer {TOKEN}").create()),
                await code_of(ops.authorized("Bearer x").create()),
            ]
            assert codes == [
                "PERMISSION_DENIED",
                "PERMISSION_DENIED",
                "UNAUTHENTICATED",
                "OK",
                "NOT_FOUND",  # because the channel belongs to another tenant
                "OK",
                "PERMISSION_DENIED",
                "UNAUTHENTICATED",
            ]
        read = await read_all(shop.authorized(f"Bearer {TOKEN}"), channel.consumer, SHORT)
        assert [event.body for event in read] == [b"1", b"1"]
        assert await reload(app, lambda old: replace(old, auth=replace(auth, certificates={})))
        assert await code_of(shop.create()) == "UNAUTHENTICATED"


async def test_the_lane_answers_clients_with_certificates(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = authority.issue()
    shop = authority.issue("shop", names=(SHOP,))
    auth = Auth(require=tuple(Action), certificates=GROUPS)
    settings = fast_settings(tls=made.tls_for_known_clients, auth=auth, http_lane=True)
    async with (
        running(settings) as app,
        http_client(app, authority.file.read_bytes(), shop) as face,
    ):

        def refuse(*_: object) -> NoReturn:
            raise AssertionError("aiohttp was asked")

        monkeypatch.setattr(Callers, "of", refuse)
        for size in (1, 3_000):
            channel = await face.create()
            await face.write(channel.producer, "orders.eu", b'"%b"' % (b"x" * size))
