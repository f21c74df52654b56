"""The values that all parts share: endpoints, as people write them."""

import pytest

from megaphone.model import Endpoint


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:3000", "127.0.0.1", 3000),
        ("node-1.example.com:0", "node-1.example.com", 0),
        ("[::]:65535", "::", 65535),
        ("[2001:db8::1]:1", "2001:db8::1", 1),
        ("[::ffff:10.0.0.1]:3001", "::ffff:10.0.0.1", 3001),
    ],
)
def test_an_endpoint_is_written_as_it_is_read(text: str, host: str, port: int) -> None:
    endpoint = Endpoint.parse(text)
    assert endpoint == Endpoint(host, port)
    assert str(endpoint) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "3000",
        ":3000",
        "host",
        "host:",
        "host:65536",
        "host:-1",
        "host:\uff13000",
        "::1:3000",
        "[::1]",
        "[host]:3000",
        "http://host:3000",
        "user@host:3000",
        "host:3000/",
        "a host:3000",
        "host:3000\n",
    ],
)
def test_other_texts_are_no_endpoint_and_the_error_shows_one(text: str) -> None:
    with pytest.raises(ValueError, match=r"host:port, such as 0\.0\.0\.0:3000 or \[::\]:3000"):
        Endpoint.parse(text)


def test_an_endpoint_gets_the_port_that_the_system_chose() -> None:
    assert str(Endpoint.parse("[::1]:0").with_port(5)) == "[::1]:5"
