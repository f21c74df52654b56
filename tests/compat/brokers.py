"""Both brokers as operators see them: a socket, a URL, and channels made through it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.compat.http import JSON, Answer, call_unix, post
from tests.compat.original import original_process
from tests.support.process import broker_process


@dataclass(frozen=True, slots=True)
class Broker:
    url: str
    socket_path: Path

    def create(self) -> Any:
        return post(f"{self.url}/create", {}).json()

    def get(self, route: str) -> Answer:
        return call_unix(self.socket_path, "GET", route)

    def post(self, route: str, body: bytes, content_type: str | None = JSON) -> Answer:
        return call_unix(self.socket_path, "POST", route, body, content_type)

    def delete(self, address: str) -> Answer:
        return call_unix(self.socket_path, "DELETE", f"/channel/{address}")

    def agents(self) -> dict[str, Any]:
        return {agent["name"]: agent for agent in self.get("/vagent/list").json()}


@dataclass(frozen=True, slots=True)
class Pair:
    """The original and ours, configured alike: one MASTER agent `node`, warm at once."""

    theirs: Broker
    ours: Broker

    def both(self) -> tuple[Broker, Broker]:
        return self.theirs, self.ours


@contextmanager
def pair(directory: Path) -> Iterator[Pair]:
    agent: dict[str, Any] = {"agent.virtual.node": "MASTER", "agent_warmup_secs": 0}
    with (
        original_process(directory, "node") as theirs,
        broker_process(directory, **agent) as ours,
    ):
        yield Pair(
            Broker(theirs.url, theirs.socket_path), Broker(ours.url, directory / "megaphone.sock")
        )
