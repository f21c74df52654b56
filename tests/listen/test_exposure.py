"""The endpoint of a node decides who can reach it, and the node warns about it at the start."""

import pytest

from megaphone.listen.exposure import accepted_sources, is_loopback, reachable, warnings
from megaphone.model import Action, Endpoint
from megaphone.settings import Auth, Nodes, Settings, Tls

SECRET = "s" * 32


@pytest.mark.parametrize(
    "endpoint", ["127.0.0.1:0", "127.0.0.2:3001", "127.255.255.254:1", "[::1]:3001", "localhost:1"]
)
def test_endpoints_that_only_this_machine_reaches(endpoint: str) -> None:
    assert is_loopback(Endpoint.parse(endpoint))


@pytest.mark.parametrize(
    "endpoint",
    [
        "0.0.0.0:3001",
        "[::]:3001",
        "10.0.0.1:3001",
        "128.0.0.1:3001",
        "[2001:db8::1]:3001",
        "[::ffff:10.0.0.1]:3001",
        "node-1:3001",
        "localhost.example.com:3001",
    ],
)
def test_endpoints_that_other_machines_may_reach(endpoint: str) -> None:
    assert not is_loopback(Endpoint.parse(endpoint))


@pytest.mark.parametrize(
    ("endpoint", "nodes", "sources"),
    [
        ("127.0.0.1:3001", Nodes(), "processes of this machine"),
        ("127.0.0.1:3001", Nodes(secret=SECRET), "nodes that have the same secret"),
        ("127.0.0.1:3001", Nodes(open=True), "everybody who can reach it"),
        ("0.0.0.0:3001", Nodes(), "nobody: `nodes.secret` is not set"),
        ("0.0.0.0:3001", Nodes(secret=SECRET), "nodes that have the same secret"),
        ("0.0.0.0:3001", Nodes(secret=SECRET, open=True), "everybody who can reach it"),
    ],
)
def test_the_sources_that_a_node_accepts(endpoint: str, nodes: Nodes, sources: str) -> None:
    assert accepted_sources(Settings(grpc_address=endpoint, nodes=nodes)) == sources


@pytest.mark.parametrize(
    ("http", "grpc", "is_open", "starts"),
    [
        ("127.0.0.1:0", "127.0.0.1:0", True, []),
        ("0.0.0.0:0", "127.0.0.1:0", True, ["other machines can reach HTTP,"]),
        ("0.0.0.0:0", "[::]:0", False, ["other machines can reach HTTP and gRPC,"]),
        ("127.0.0.1:0", "[::]:0", True, ["other machines can reach gRPC,", "`nodes.open` is set:"]),
    ],
)
def test_a_node_warns_about_faces_that_other_machines_reach(
    http: str, grpc: str, is_open: bool, starts: list[str]
) -> None:
    lines = warnings(Settings(address=http, grpc_address=grpc, nodes=Nodes(open=is_open)))
    assert len(lines) == len(starts)
    assert all(line.startswith(start) for line, start in zip(lines, starts, strict=True))


@pytest.mark.parametrize(
    "safe",
    [
        Settings(grpc_address="0.0.0.0:0", auth=Auth(require=(Action.CREATE,))),
        Settings(grpc_address="0.0.0.0:0", tls=Tls(client_ca="authority.pem")),
    ],
    ids=["auth.require", "tls.client_ca"],
)
def test_a_node_that_asks_who_calls_does_not_warn(safe: Settings) -> None:
    assert warnings(safe) == []


def test_the_warning_names_the_setting() -> None:
    [line] = warnings(Settings(address="0.0.0.0:0"))
    assert "`auth.require`" in line


@pytest.mark.parametrize(
    ("grpc", "nodes", "is_warned"),
    [
        ("0.0.0.0:0", Nodes(), True),
        ("0.0.0.0:0", Nodes(secret=SECRET), False),
        ("0.0.0.0:0", Nodes(open=True), False),
        ("127.0.0.1:0", Nodes(), False),
    ],
)
def test_a_node_that_could_not_hand_over_says_so_before_it_has_to(
    grpc: str, nodes: Nodes, is_warned: bool
) -> None:
    settings = Settings(grpc_address=grpc, nodes=nodes, drain_target="http://other:3001")
    assert any(line.startswith("`drain_target` is set") for line in warnings(settings)) is is_warned


def test_where_a_node_is_reached_from_its_own_machine() -> None:
    for endpoint, here in (
        ("0.0.0.0:3000", "127.0.0.1:3000"),
        ("[::]:3000", "[::1]:3000"),
        ("10.0.0.1:3000", "10.0.0.1:3000"),
        ("[::1]:3000", "[::1]:3000"),
    ):
        assert str(reachable(Endpoint.parse(endpoint))) == here
