"""nginx as a contestant: a constant answer, and nchan, which is a broker in C within nginx.

nginx with a constant answer is the ceiling of one request for one answer. A write to nchan reaches
all who read its channel, so that one channel with many readers is what a batch is to our broker.
"""

import os
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.events import BODY
from bench.http import Channel, get, post
from bench.processes import (
    HOST,
    OPEN_FILES,
    BenchError,
    answers,
    only_child_of,
    opened,
    program,
    running,
    server_cores,
)
from bench.servers import FanOut, FanOutServer, Route, Server, WriteServer, write_request
from tests.support.ports import free_ports

PROGRAM = program("nginx")
NCHAN = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")
STREAMED = "TE: chunked\r\n"
"""nchan asks for this before it streams."""
EXAMPLE = Channel(producer="bench." + "p" * 58, consumer="bench." + "c" * 52)
"""As long as real addresses, so that the requests are as long as those of the others."""

CONFIGURATION = """\
{module}
daemon off;
{user}
worker_processes 1;
worker_rlimit_nofile {files};
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections {files}; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    default_type application/json;
    server {{
        listen {host}:{port} backlog=4096;
        {locations}
    }}
}}
"""
CONSTANTS = """
        location /write/ { return 201 '{"status":"OK"}'; }
        location /create { return 200 '%s'; }
"""
CHANNELS = """
        location ~ ^/write/(\\w+) {
            nchan_publisher;
            nchan_channel_id $1;
            nchan_message_buffer_length 100;
        }
        location ~ ^/read/(\\w+) {
            nchan_subscriber http-chunked;
            nchan_channel_id $1;
        }
"""


@dataclass(frozen=True, slots=True)
class Constants(WriteServer):
    """nginx that answers all writes and creations alike. It has no reads."""

    def routes(self, count: int) -> list[Route]:
        return [Route(write_request(EXAMPLE), None)] * count


@dataclass(frozen=True, slots=True)
class Nchan(FanOutServer):
    """nginx with nchan, where a channel is there as soon as its name is used."""

    def routes(self, count: int) -> list[Route]:
        return [
            Route(post(f"/write/c{n}", BODY + b"\n"), get(f"/read/c{n}", STREAMED))
            for n in range(count)
        ]

    def fan_out(self, count: int, bodies: Sequence[bytes]) -> FanOut:
        """Raises: BenchError, if there are several events: nchan has no batches."""
        if len(bodies) != 1:
            raise BenchError("nchan takes one event a request")
        return FanOut(
            post("/write/all", bodies[0] + b"\n"),
            [get("/read/all", STREAMED)] * count,
            b"201 Created",
        )


@asynccontextmanager
async def constants() -> AsyncIterator[Server]:
    created = (
        f'{{"channelId":"{EXAMPLE.consumer}","producerAddress":"{EXAMPLE.producer}",'
        f'"consumerAddress":"{EXAMPLE.consumer}","agentName":"bench",'
        '"protocols":["HTTP_STREAM_NDJSON_V1"]}'
    )
    async with nginx("", CONSTANTS % created) as (pid, port):
        yield Constants(pid, port)


@asynccontextmanager
async def nchan() -> AsyncIterator[Server]:
    async with nginx(f"load_module {NCHAN};", CHANNELS) as (pid, port):
        yield Nchan(pid, port)


@asynccontextmanager
async def nginx(module: str, locations: str) -> AsyncIterator[tuple[int, int]]:
    """Start nginx with one worker. Yields: the process id of the worker, and the port."""
    [port] = free_ports(1)
    with tempfile.TemporaryDirectory(prefix="megaphone-bench-") as folder:
        configuration, log = Path(folder, "nginx.conf"), Path(folder, "log")
        configuration.write_text(
            CONFIGURATION.format(
                module=module,
                # Otherwise the workers of root are another user, who may not enter the folder.
                user="user root;" if os.geteuid() == 0 else "",
                files=OPEN_FILES,
                folder=folder,
                host=HOST,
                port=port,
                locations=locations,
            )
        )
        command = [str(PROGRAM), "-p", folder, "-c", str(configuration)]
        with opened(log) as sink:
            async with running(command, on_cores=server_cores(), stderr=sink) as process:
                await answers(process, port, log)
                yield await only_child_of(process.pid), port


def missing() -> str | None:
    return None if PROGRAM else "nginx is not installed"


def missing_nchan() -> str | None:
    if reason := missing():
        return reason
    return None if NCHAN.exists() else "libnginx-mod-nchan is not installed"
