"""The URL of a shared store: what it says, and that no text about it has a password."""

import ssl
from pathlib import Path

import pytest

from megaphone.model import Endpoint
from megaphone.store.errors import UnusableStore
from megaphone.store.redis.url import StoreUrl, Topology
from tests.support.certificates import make_certificates

SECRET = "hunter2"


def test_a_short_url_has_defaults() -> None:
    assert StoreUrl.parse("redis://store") == StoreUrl(
        Topology.SINGLE, endpoints=(Endpoint("store", 6379),)
    )


def test_a_long_url_says_everything() -> None:
    url = StoreUrl.parse(
        "rediss://me:a%40b%2Fc%3A%3F@10.0.0.1:7000/3?ssl_ca_certs=/ca&ssl_certfile=/c&ssl_keyfile=/k"
    )
    assert url == StoreUrl(
        Topology.SINGLE,
        endpoints=(Endpoint("10.0.0.1", 7000),),
        database=3,
        username="me",
        password="a@b/c:?",
        is_tls=True,
        ca_file="/ca",
        certificate_file="/c",
        key_file="/k",
    )


@pytest.mark.parametrize(
    ("userinfo", "expected"),
    [
        ("", (None, None)),
        ("me@", ("me", None)),
        (":pw@", (None, "pw")),
        ("me:pw@", ("me", "pw")),
        ("me:p:w@", ("me", "p:w")),
        ("me:p@w@", ("me", "p@w")),
        ("me:p/w@", ("me", "p/w")),
        ("me:%25@", ("me", "%")),
    ],
)
def test_user_and_password(userinfo: str, expected: tuple[str | None, str | None]) -> None:
    url = StoreUrl.parse(f"redis://{userinfo}host")
    assert (url.username, url.password) == expected


def test_a_unix_socket() -> None:
    url = StoreUrl.parse(f"unix://:{SECRET}@/run/my%20redis.sock?db=2")
    assert url.socket_path == "/run/my redis.sock"
    assert (url.endpoints, url.database, url.password) == ((), 2, SECRET)
    assert str(url) == "unix:///run/my redis.sock?db=2"
    assert str(StoreUrl.parse("unix:///s")) == "unix:///s"


def test_sentinels() -> None:
    url = StoreUrl.parse(
        f"rediss+sentinel://u:{SECRET}@a,b:1,[::1]:2/mp/4"
        "?sentinel_username=s&sentinel_password=hunter3"
    )
    assert url.topology is Topology.SENTINEL
    assert url.endpoints == (Endpoint("a", 26379), Endpoint("b", 1), Endpoint("::1", 2))
    assert (url.service, url.database, url.is_tls) == ("mp", 4, True)
    assert (url.sentinel_username, url.sentinel_password) == ("s", "hunter3")
    assert str(url) == "rediss+sentinel://a:26379,b:1,[::1]:2/mp/4"


def test_a_cluster() -> None:
    url = StoreUrl.parse("redis+cluster://a,b:1")
    assert url.topology is Topology.CLUSTER
    assert url.endpoints == (Endpoint("a", 6379), Endpoint("b", 1))
    assert str(url) == "redis+cluster://a:6379,b:1"


def test_the_database_is_in_the_path_or_an_option() -> None:
    assert StoreUrl.parse("redis://h/7").database == 7
    assert StoreUrl.parse("redis://h?db=7").database == 7
    assert StoreUrl.parse("redis://h/?db=7").database == 7
    assert StoreUrl.parse("redis://h/").database == 0


def test_a_password_may_be_kept_elsewhere() -> None:
    assert StoreUrl.parse("redis://me@h").with_password(SECRET).password == SECRET


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is the URL of one of redis, rediss, unix"),
        ("redis", "is the URL of one of"),
        ("http://h", "is the URL of one of"),
        ("redis://", "needs a host"),
        ("redis://h:0", "needs a host"),
        ("redis://h:65536", "needs a host"),
        ("redis://h:x", "needs a host"),
        ("redis://h h", "needs a host"),
        ("redis://a,b", "several are for redis+sentinel"),
        ("redis://h/x", "the database is a number"),
        ("redis://h/1/2", "the database is a number"),
        ("redis://h/9999999", "the database is a number"),
        ("redis://h/1?db=1", "keep one of them"),
        ("redis://h?color=red", "unknown option"),
        ("redis://h?db=1&db=2", "needs one value"),
        ("redis://h?db=", "needs one value"),
        ("redis://h?ssl_ca_certs=/x", "need rediss"),
        ("rediss://h?ssl_keyfile=/x", "ssl_certfile too"),
        ("redis://h?sentinel_password=x", "need redis+sentinel"),
        ("redis://h#x", "has no #"),
        ("unix://h/x", "unix:///path"),
        ("unix://", "unix:///path"),
        ("redis+sentinel://h", "needs the service's name"),
        ("redis+sentinel://h/", "needs the service's name"),
        ("redis+cluster://h/1", "has one database"),
        ("redis+cluster://a,,b", "needs a host"),
    ],
)
def test_what_is_wrong_is_said(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why.replace("+", r"\+")):
        StoreUrl.parse(text)


@pytest.mark.parametrize("broken", ["{}?x=1", "{}#x", "x?{}=1", "x?db={}", "x?{}"])
def test_a_password_that_is_not_encoded_is_not_told(broken: str) -> None:
    """Parts of it are taken for a host, a port, a path or an option, and must not be quoted."""
    with pytest.raises(ValueError, match=r".") as caught:
        StoreUrl.parse(f"redis://me:{broken.format(SECRET)}@host:6379/0")
    assert SECRET not in str(caught.value)
    assert caught.value.__context__ is None


def test_no_text_of_a_url_has_a_password() -> None:
    url = StoreUrl.parse(f"redis+sentinel://me:{SECRET}@h/mp?sentinel_password={SECRET}")
    assert SECRET not in f"{url} {url!r}"
    assert "me" not in str(url)


def test_only_tls_needs_a_context() -> None:
    assert StoreUrl.parse("redis://h").make_tls() is None
    context = StoreUrl.parse("rediss://h").make_tls()
    assert context is not None
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname


@pytest.mark.parametrize("option", ["ssl_ca_certs", "ssl_certfile"])
def test_files_that_cannot_be_used_are_named(option: str, tmp_path: Path) -> None:
    missing = StoreUrl.parse(f"rediss://h?{option}={tmp_path}/missing")
    with pytest.raises(ValueError, match=f"{option}.*: No such file"):
        missing.make_tls()
    (tmp_path / "empty").touch()
    empty = StoreUrl.parse(f"rediss://h?{option}={tmp_path}/empty")
    with pytest.raises(ValueError, match=f"{option}.*: hold"):
        empty.make_tls()


def test_a_certificate_without_its_key_cannot_be_used(tmp_path: Path) -> None:
    files = make_certificates(tmp_path)
    alone = StoreUrl.parse(f"rediss://h?ssl_certfile={files.certificate}")
    with pytest.raises(ValueError, match="no certificate with its key"):
        alone.make_tls()


@pytest.mark.parametrize("text", ["hunter2", "hunter2\n", "hunter2\r\n", "hunter2\nmore\n"])
def test_the_password_may_be_the_first_line_of_a_file(text: str, tmp_path: Path) -> None:
    (tmp_path / "password").write_text(text, newline="")
    url = StoreUrl.of_settings("redis://me@h", str(tmp_path / "password"))
    assert (url.username, url.password) == ("me", SECRET)


def test_without_such_a_file_the_url_says_all() -> None:
    assert StoreUrl.of_settings(f"redis://:{SECRET}@h", None).password == SECRET


@pytest.mark.parametrize(
    ("text", "content", "why"),
    [
        ("http://h", b"hunter2", "^store: a store is the URL of"),
        (f"redis://:{SECRET}@h", b"hunter2", "keep one"),
        ("redis://h", None, "^store_password_file: No such file"),
        ("redis://h", b"\xff", "UTF-8"),
        ("redis://h", b" \nhunter2", "first line is empty"),
    ],
)
def test_settings_that_name_no_store_are_refused(
    text: str, content: bytes | None, why: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "password").write_bytes(content)
    with pytest.raises(UnusableStore, match=why) as caught:
        StoreUrl.of_settings(text, str(tmp_path / "password"))
    assert SECRET not in str(caught.value)
