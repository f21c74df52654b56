"""nginx as a child process, with the configuration of deploy/nginx."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.ports import free_port

DEPLOY = Path(__file__).parents[2] / "deploy"
CONFIGURATION = DEPLOY / "nginx"
SHARED = DEPLOY / "nginx-shared"
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")

DIRECTIVES = "daemon off;" + ("user root;" if os.geteuid() == 0 else "")
"""If root starts nginx, its workers run as another user, who may not enter a test's folder."""

needs_nginx = pytest.mark.skipif(NGINX is None, reason="needs nginx")


@dataclass(frozen=True, slots=True)
class Proxy:
    process: subprocess.Popen[bytes]
    http_port: int
    grpc_port: int
    folder: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def grpc_target(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    def log(self) -> str:
        """Return the access log and the error log."""
        return "".join((self.folder / name).read_text() for name in ("access.log", "error.log"))


def static_nodes(hosts: Sequence[str], http_port: int, grpc_port: int) -> str:
    """Return nodes-static.conf with the given nodes."""
    lines = (CONFIGURATION / "nodes-static.conf").read_text().splitlines()
    servers = [f"    server {host}:{http_port} max_fails=0;" for host in hosts]
    first = next(i for i, line in enumerate(lines) if "server node-1" in line)
    kept = [line for line in lines if "server node-" not in line]
    return "\n".join(kept[:first] + servers + kept[first:]).replace("3001", str(grpc_port))


def dns_nodes(name: str, resolver: str, http_port: int, grpc_port: int) -> str:
    """Return nodes-dns.conf with the given name and resolver."""
    text = (CONFIGURATION / "nodes-dns.conf").read_text()
    return (
        text.replace("resolver 127.0.0.11", f"resolver {resolver}")
        .replace("megaphone:3000", f"{name}:{http_port}")
        .replace("3001", str(grpc_port))
    )


def kubernetes_nodes(http_port: int, grpc_port: int) -> str:
    """Return nodes-kubernetes.conf for nodes with other ports."""
    text = (CONFIGURATION / "nodes-kubernetes.conf").read_text()
    return text.replace("local:3000", f"local:{http_port}").replace("3001", str(grpc_port))


def shared_nodes(nodes: Sequence[tuple[int, int]]) -> str:
    """Return the nodes.conf of nodes that share a store, with the given ports of HTTP and gRPC."""
    kept, http, grpc = [], iter(nodes), iter(nodes)
    for line in (SHARED / "nodes.conf").read_text().splitlines():
        if "server node-" not in line:
            kept.append(line)
        elif ":3000" in line and (one := next(http, None)):
            kept.append(f"    server 127.0.0.1:{one[0]} fail_timeout=1s;")
        elif ":3001" in line and (one := next(grpc, None)):
            kept.append(f"    server 127.0.0.1:{one[1]} fail_timeout=1s;")
    return "\n".join(kept)


@contextmanager
def nginx(
    folder: Path, nodes: str, configuration: Path = CONFIGURATION, resolver: str | None = None
) -> Iterator[Proxy]:
    """Run nginx before some nodes on free ports. It is killed at the end if it does not stop.

    `resolver` is the name server of nodes-kubernetes.conf.
    """
    assert NGINX is not None
    folder.mkdir()
    ports = {"3000": free_port(), "3001": free_port()}
    for source in configuration.glob("*.conf"):
        text = source.read_text().replace("/tmp/megaphone-nginx", f"{folder}/nginx")
        text = text.replace("/dev/stdout", f"{folder}/access.log").replace(
            "buffer=64k flush=1s", ""
        )
        for port, free in ports.items():
            text = text.replace(f"listen {port}", f"listen 127.0.0.1:{free}")
        (folder / source.name).write_text(text)
    (folder / "nodes.conf").write_text(nodes)
    if resolver is not None:
        (folder / "resolver.conf").write_text(f"resolver {resolver} valid=1s ipv6=off;\n")
    with (folder / "error.log").open("wb") as errors:
        process = subprocess.Popen(
            [NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-g", DIRECTIVES],
            stderr=errors,
        )
    try:
        wait_until_it_listens(process, folder, list(ports.values()))
        yield Proxy(process, ports["3000"], ports["3001"], folder)
    finally:
        process.terminate()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until_it_listens(
    process: "subprocess.Popen[bytes]", folder: Path, ports: Sequence[int]
) -> None:
    for port in ports:
        while True:
            assert process.poll() is None, (folder / "error.log").read_text()
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except ConnectionRefusedError:
                continue
