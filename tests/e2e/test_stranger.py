"""A stranger who reaches the gRPC port of a node cannot take over an agent."""

from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path

import grpc
import pytest

from megaphone_api import sync_pb2 as pb
from megaphone_api.sync_pb2_grpc import SyncServiceStub
from tests.support.process import BrokerProcess, broker_process

EVERYWHERE = "0.0.0.0:0"
SECRET = "a-secret-that-the-stranger-has-not"
WITHIN_S = 10.0


def takes_over(broker: BrokerProcess) -> grpc.StatusCode:
    """Feed an agent `blue`, and say that this was all of it. Returns: what the node made of it."""
    messages = [
        pb.SyncRequest(pipe_agent_start=pb.PipeAgentStart(agent_id="blue", key=bytes(32))),
        pb.SyncRequest(pipe_agent_end=pb.PipeAgentEnd(agent_id="blue")),
    ]
    with grpc.insecure_channel(broker.grpc_target) as connection:
        try:
            SyncServiceStub(connection).ForwardEvents(iter(messages), timeout=WITHIN_S)
        except grpc.RpcError as refused:
            status: grpc.StatusCode = refused.code()
            return status
        return grpc.StatusCode.OK


def says_it_has_blue(broker: BrokerProcess) -> bool:
    """Ask a node as a proxy does."""
    connection = HTTPConnection("127.0.0.1", broker.http_port, timeout=WITHIN_S)
    try:
        connection.request("GET", "/agents/blue")
        status = connection.getresponse().status
    finally:
        connection.close()
    assert status in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_FOUND)
    return status == HTTPStatus.NO_CONTENT


@pytest.mark.parametrize(
    ("settings", "feeders"),
    [
        ({"grpc_address": EVERYWHERE}, "nobody: `nodes.secret` is not set"),
        ({"grpc_address": EVERYWHERE, "nodes.secret": SECRET}, "nodes that have the same secret"),
        ({"nodes.secret": SECRET}, "nodes that have the same secret"),
    ],
    ids=["everywhere", "everywhere with a secret", "loopback with a secret"],
)
def test_a_stranger_is_refused(tmp_path: Path, settings: dict[str, str], feeders: str) -> None:
    with broker_process(tmp_path, **settings) as broker:
        assert f"it accepts agents from {feeders}" in broker.start_line
        assert SECRET not in broker.start_line
        assert takes_over(broker) is grpc.StatusCode.UNAUTHENTICATED
        assert not says_it_has_blue(broker)


def test_an_open_node_accepts_anybody_and_warns_of_it(tmp_path: Path) -> None:
    open_to_all = {"nodes.open": "true"}
    with broker_process(tmp_path, grpc_address=EVERYWHERE, **open_to_all) as broker:
        assert "it accepts agents from everybody who can reach it" in broker.start_line
        assert broker.process.stderr is not None
        warnings = [broker.process.stderr.readline() for _ in range(2)]
        assert "other machines can reach gRPC" in warnings[0]
        assert "`nodes.open` is set: everybody who can reach gRPC can replicate" in warnings[1]
        assert takes_over(broker) is grpc.StatusCode.OK
        assert says_it_has_blue(broker)


def test_a_node_says_where_it_listens(tmp_path: Path) -> None:
    with broker_process(tmp_path) as broker:
        assert (
            f"serves HTTP on 127.0.0.1:{broker.http_port} and gRPC on {broker.grpc_target};"
            " it accepts agents from processes of this machine" in broker.start_line
        )
    with broker_process(tmp_path, grpc_address=EVERYWHERE) as broker:
        assert f"gRPC on 0.0.0.0:{broker.grpc_port};" in broker.start_line
