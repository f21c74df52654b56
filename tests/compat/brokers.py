"""Both brokers as operators and clients see them: a socket, ports, and channels made there."""

import http.client
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.compat.http import JSON, TIMEOUT_S, Answer, call_unix, post
from tests.compat.original import original_process
from tests.support.process import broker_process

if TYPE_CHECKING:
    import subprocess

    from tests.support.forked import ForkedProcess


@dataclass(frozen=True, slots=True)
class Channel:
    producer: str
    consumer: str


@dataclass(frozen=True, slots=True)
class Broker:
    process: "subprocess.Popen[Any] | ForkedProcess"
    http_port: int
    grpc_port: int
    socket_path: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def pipe_target(self) -> str:
        return f"http://127.0.0.1:{self.grpc_port}"

    # -- As operators see it

    def get(self, route: str) -> Answer:
        return call_unix(self.socket_path, "GET", route)

    def post(self, route: str, body: bytes, content_type: str | None = JSON) -> Answer:
        return call_unix(self.socket_path, "POST", route, body, content_type)

    def delete(self, address: str) -> Answer:
        return call_unix(self.socket_path, "DELETE", f"/channel/{address}")

    def pipe(self, agent: str, target: str) -> Answer:
        body = json.dumps({"name": agent, "target": target})
        return self.post("/vagent/pipe", body.encode())

    def agents(self) -> dict[str, Any]:
        return {agent["name"]: agent for agent in self.get("/vagent/list").json()}

    def mode(self, agent: str) -> str | None:
        """Return the mode of an agent; None when it is not there."""
        mode: str | None = self.agents().get(agent, {}).get("mode")
        return mode

    # -- As clients see it

    def create(self) -> Channel:
        created = post(f"{self.url}/create", {}).json()
        return Channel(created["producerAddress"], created["consumerAddress"])

    def write(self, address: str, body: Any, stream: str = "s") -> None:
        answer = post(f"{self.url}/write/{address}/{stream}", body)
        assert answer.status == 201, answer

    def exists(self, *addresses: str) -> dict[str, bool]:
        answer = post(f"{self.url}/channelsExists", {"channels": addresses})
        exist: dict[str, bool] = answer.json()["channels"]
        return exist

    def read(self, channel: Channel) -> list[Any]:
        """Return the events of one read, which lasts until the end of its window."""
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=TIMEOUT_S)
        try:
            connection.request("GET", f"/read/{channel.consumer}")
            response = connection.getresponse()
            assert response.status == http.client.OK, response.read()
            return [json.loads(line) for line in response.read().splitlines()]
        finally:
            connection.close()


Start = Callable[..., AbstractContextManager[Broker]]


@contextmanager
def theirs(directory: Path, agent: str, **settings: object) -> Iterator[Broker]:
    """Run the original with one MASTER agent, warm at once."""
    with original_process(directory, agent, **settings) as node:
        yield Broker(node.process, node.http_port, node.grpc_port, node.socket_path)


@contextmanager
def ours(directory: Path, agent: str, **settings: object) -> Iterator[Broker]:
    """Run ours with one MASTER agent, warm at once."""
    configured: dict[str, Any] = {f"agent.virtual.{agent}": "MASTER", "agent_warmup_secs": 0}
    with broker_process(directory, **configured | settings) as node:
        socket_path = directory / "megaphone.sock"
        yield Broker(node.process, node.http_port, node.grpc_port, socket_path)


@dataclass(frozen=True, slots=True)
class Pair:
    """The original and ours, configured alike."""

    theirs: Broker
    ours: Broker

    def both(self) -> tuple[Broker, Broker]:
        return self.theirs, self.ours


@contextmanager
def pair(directory: Path, agent: str = "node") -> Iterator[Pair]:
    with theirs(directory, agent) as original, ours(directory, agent) as own:
        yield Pair(original, own)
