"""The long read over TLS, where the broker cannot write to the socket itself."""

import asyncio
import datetime
import ipaddress
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from megaphone.app import App
from megaphone.core.budget import Budget
from megaphone.rest.channels import ChannelApi
from megaphone.rest.connection.limits import Connections
from megaphone.rest.connection.protocol import Host, protocol_of
from megaphone.rest.cors import ORIGINS, Origins
from tests.support.faces import HttpFace

BODIES = [b"1", b'"' + b"x" * 500_000 + b'"', b"2", b'"' + b"y" * 40_000 + b'"', b"3"]


def write_certificate(folder: Path) -> Path:
    """Write a key and a self-signed certificate for 127.0.0.1 into one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = folder / "both.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return path


@pytest.fixture
async def encrypted(app: App, tmp_path: Path) -> AsyncIterator[aiohttp.ClientSession]:
    """A client that reads from the broker over TLS."""
    certificate = write_certificate(tmp_path)
    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    serving.load_cert_chain(certificate)
    served = web.Application()
    served[ORIGINS] = Origins()
    api = ChannelApi(app.broker)
    served.router.add_routes([route for route in api.routes() if route.path.startswith("/read/")])
    runner = web.AppRunner(served, handler_cancellation=True)
    await runner.setup()
    assert runner.server is not None
    host = Host(runner.server, Connections(), Budget(), probe_paths=(), lane=None)
    listener = await asyncio.get_running_loop().create_server(
        lambda: protocol_of(host), "127.0.0.1", 0, ssl=serving
    )
    trusting = ssl.create_default_context(cafile=str(certificate))
    base = f"https://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    connector = aiohttp.TCPConnector(ssl=trusting)
    async with aiohttp.ClientSession(base, connector=connector) as session:
        yield session
    listener.close()
    await runner.cleanup()


async def test_a_read_goes_on_after_each_event_however_large(
    app: App, http: HttpFace, encrypted: aiohttp.ClientSession
) -> None:
    channel = await http.create()
    async with encrypted.get(f"/read/{channel.consumer}") as response:
        for body in BODIES:
            await http.write(channel.producer, "s", body)
            line = b""
            while not line.endswith(b"\n"):
                line += await response.content.readany()
            assert line.endswith(b'"body":' + body + b"}\n")
