"""A store behind TLS. Of the servers for tests only that of Debian has it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from megaphone.errors import StoreUnavailable
from megaphone.model import Endpoint
from megaphone.store.redis.cluster_link import ClusterLink
from megaphone.store.redis.errors import UnusableStore
from megaphone.store.redis.link import Link
from megaphone.store.redis.url import StoreUrl
from tests.store.redis.conftest import MakeLink
from tests.support.certificates import Certificates, make_certificates
from tests.support.ports import free_port
from tests.support.redis_cluster import redis_cluster
from tests.support.redis_server import redis_server


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def address(certificates: Certificates) -> Iterator[str]:
    """Of a server that wants certificates of its clients, too."""
    port = free_port()
    with redis_server(
        "redis",
        tls_port=port,
        tls_ca_cert_file=certificates.authority,
        tls_cert_file=certificates.certificate,
        tls_key_file=certificates.key,
    ):
        yield f"rediss://127.0.0.1:{port}"


def with_certificate(address: str, certificates: Certificates) -> str:
    return f"{address}?ssl_certfile={certificates.certificate}&ssl_keyfile={certificates.key}"


async def test_calls_over_tls(
    address: str, certificates: Certificates, make_link: MakeLink
) -> None:
    url = f"{with_certificate(address, certificates)}&ssl_ca_certs={certificates.authority}"
    link = await make_link(StoreUrl.parse(url))
    body = bytes(range(256)) * 10_000
    assert await link.call("SET", "k", body) == b"OK"
    assert await link.call("GET", "k") == body
    link.reconnect("a test wants it")
    assert await link.call("GET", "k") == body


async def test_calls_to_a_cluster_over_tls(certificates: Certificates) -> None:
    port = free_port()
    options = f"ssl_ca_certs={certificates.authority}"
    with redis_cluster(
        "redis",
        masters=1,
        tls_port=port,
        tls_cluster="yes",
        tls_auth_clients="no",
        tls_ca_cert_file=certificates.authority,
        tls_cert_file=certificates.certificate,
        tls_key_file=certificates.key,
    ):
        url = StoreUrl.parse(f"rediss+cluster://127.0.0.1:{port}?{options}")
        link = ClusterLink(url, name="test")
        await link.start()
        assert await link.call("SET", "k", "v") == b"OK"
        assert [master.place for master in link.masters()] == [Endpoint("127.0.0.1", port)]
        await link.aclose()


async def test_an_unknown_authority_is_not_trusted(
    address: str, certificates: Certificates
) -> None:
    link = Link(StoreUrl.parse(with_certificate(address, certificates)), name="test")
    with pytest.raises(UnusableStore, match="is not trusted: self-signed"):
        await link.start()


async def test_a_client_without_the_certificate_that_the_server_wants(
    address: str, certificates: Certificates
) -> None:
    url = StoreUrl.parse(f"{address}?ssl_ca_certs={certificates.authority}")
    with pytest.raises(StoreUnavailable):
        await Link(url, name="test").start()


async def test_a_file_that_is_not_there_is_named_at_the_start(tmp_path: Path) -> None:
    url = StoreUrl.parse(f"rediss://h?ssl_ca_certs={tmp_path}/none")
    with pytest.raises(UnusableStore, match="ssl_ca_certs: No such file"):
        Link(url, name="test")
