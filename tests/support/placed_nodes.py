"""Nodes that share a store, each with ports that it keeps when another process takes its place."""

import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.support.ports import free_port
from tests.support.process import BrokerProcess, broker_process

STOPS_WITHIN_S = 30


class PlacedNodes:
    def __init__(
        self, stack: ExitStack, folder: Path, store: str, *, count: int = 3, **settings: object
    ) -> None:
        """Start the nodes, which end with the stack."""
        self._stack = stack
        self._folder = folder
        self._settings: dict[str, Any] = {"store": store, "agent_warmup_secs": 0, **settings}
        self.ports = [(free_port(), free_port()) for _ in range(count)]
        """The ports of HTTP and gRPC of each node."""
        self._running = [self._start(number) for number in range(count)]

    def _start(self, number: int) -> BrokerProcess:
        home = self._folder / str(number)
        home.mkdir(exist_ok=True)
        http_port, grpc_port = self.ports[number]
        return self._stack.enter_context(
            broker_process(
                home,
                address=f"127.0.0.1:{http_port}",
                grpc_address=f"127.0.0.1:{grpc_port}",
                **self._settings,
            )
        )

    def replace(self, number: int) -> None:
        """Stop a node in order, and start another one where it was."""
        process = self._running[number].process
        process.send_signal(signal.SIGTERM)
        assert process.wait(STOPS_WITHIN_S) == 0
        self._running[number] = self._start(number)

    def kill_and_start(self, number: int) -> None:
        """Kill a node, and start another one where it was."""
        process = self._running[number].process
        process.kill()
        process.wait()
        self._running[number] = self._start(number)
