"""Envoy as a child process, with the configuration of deploy/envoy-shared."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.nginx import DEPLOY, Proxy, wait_until_it_listens
from tests.support.ports import free_port

CONFIGURATION = DEPLOY / "envoy-shared" / "envoy.yaml"
ENVOY = shutil.which("envoy", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")

needs_envoy = pytest.mark.skipif(ENVOY is None, reason="needs envoy")


def configuration(nodes: Sequence[tuple[int, int]], *ports: int) -> dict[str, Any]:
    """Return the configuration with nodes on some ports of HTTP and gRPC, and Envoy on others."""
    loaded: dict[str, Any] = yaml.safe_load(CONFIGURATION.read_text())
    resources = loaded["static_resources"]
    for listener, port in zip(resources["listeners"], ports, strict=True):
        listener["address"]["socket_address"] = {"address": "127.0.0.1", "port_value": port}
    for which, cluster in enumerate(resources["clusters"]):
        [part] = cluster["load_assignment"]["endpoints"]
        for one, node in zip(part["lb_endpoints"], nodes, strict=True):
            place = {"address": "127.0.0.1", "port_value": node[which]}
            one["endpoint"]["address"]["socket_address"] = place
    return loaded


@contextmanager
def envoy(folder: Path, nodes: Sequence[tuple[int, int]]) -> Iterator[Proxy]:
    """Run Envoy before some nodes on free ports. It is killed at the end if it does not stop."""
    assert ENVOY is not None
    folder.mkdir()
    http_port, grpc_port = free_port(), free_port()
    file = folder / "envoy.yaml"
    file.write_text(yaml.safe_dump(configuration(nodes, http_port, grpc_port)))
    with (folder / "access.log").open("wb") as out, (folder / "error.log").open("wb") as errors:
        process = subprocess.Popen(
            [ENVOY, "-c", str(file), "--disable-hot-restart", "--concurrency", "1"],
            stdout=out,
            stderr=errors,
        )
    try:
        wait_until_it_listens(process, folder, [http_port, grpc_port])
        yield Proxy(process, http_port, grpc_port, folder)
    finally:
        process.terminate()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
