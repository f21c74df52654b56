"""The original broker as a process, and where `make compat` puts all that it builds.

It is configured through the environment, as its operators do it.
"""

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.ports import free_ports

VERSION = "0.10.5"
ROOT = Path(__file__).parents[2]
BUILT = ROOT / ".compat"
INSTALLED = BUILT / f"original-{VERSION}"
TARGET = BUILT / "target"
BROKER = INSTALLED / "bin" / "megaphone-broker"
MEGACTL = INSTALLED / "bin" / "megactl"
CLIENT = TARGET / "release" / "compat-client"
STARTS_WITHIN_S = 10.0
STOPS_WITHIN_S = 5.0


def missing() -> str | None:
    """Say why tests against the original cannot run; None when they can."""
    absent = [path.name for path in (BROKER, MEGACTL, CLIENT) if not path.exists()]
    return f"`make compat` has not built {', '.join(absent)}" if absent else None


@dataclass(frozen=True, slots=True)
class OriginalProcess:
    process: "subprocess.Popen[bytes]"
    http_port: int
    grpc_port: int
    socket_path: Path
    log_path: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def pipe_target(self) -> str:
        return f"http://127.0.0.1:{self.grpc_port}"

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")


@contextmanager
def original_process(
    directory: Path, *agents: str, **settings: object
) -> Iterator[OriginalProcess]:
    """Run the original in `directory` on free ports, with MASTER agents that take channels at once.

    Killed at the end if it still runs. Its environment makes lower case of the names of agents.
    """
    http_port, grpc_port = free_ports(2)
    socket_path, log_path = directory / "original.sock", directory / "original.log"
    defaults: dict[str, object] = {
        "address": f"127.0.0.1:{http_port}",
        "grpc_address": f"127.0.0.1:{grpc_port}",
        "mng_socket_path": socket_path,
        "agent_warmup_secs": 0,
    }
    defaults |= {f"agent.virtual.{name}": "MASTER" for name in agents}
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [BROKER],
            cwd=directory,
            env=clean_environment()
            | {"RUST_LOG": "info"}
            | {f"megaphone_{key}": str(value) for key, value in (defaults | settings).items()},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    broker = OriginalProcess(process, http_port, grpc_port, socket_path, log_path)
    try:
        wait_until_it_listens(broker)
        yield broker
    finally:
        process.kill()
        process.wait()


def clean_environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.lower().startswith("megaphone_")}


def wait_until_it_listens(broker: OriginalProcess) -> None:
    until = time.monotonic() + STARTS_WITHIN_S
    while broker.process.poll() is None and time.monotonic() < until:
        if listens(broker.http_port) and listens(broker.grpc_port) and broker.socket_path.exists():
            return
        time.sleep(0.02)
    raise AssertionError(f"the original did not start: {broker.log}")


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
