"""One reader of large events as a separate process. It reads the backlog and counts bytes.

`python -m bench.large_reader KIND PORT CONSUMER` prints as JSON how much it read and how long that
took.
"""

import asyncio
import json
import socket
import sys
import time

import grpc

from bench.http import get
from bench.processes import HOST
from megaphone.cli.serve import new_event_loop
from megaphone_api.v1 import channels_pb2 as pb

RECEIVE_BYTES = 262_144
END = b"\r\n0\r\n\r\n"


def read_http(port: int, consumer: str) -> int:
    """Return how many bytes came, including the framing."""
    buffer = bytearray(RECEIVE_BYTES)
    count, end = 0, b""
    with socket.create_connection((HOST, port)) as connection:
        connection.sendall(get(f"/read/{consumer}?wait_ms=0"))
        while size := connection.recv_into(buffer):
            count += size
            end = (end + buffer[max(0, size - len(END)) : size])[-len(END) :]
    if end != END:
        sys.exit("the read broke")
    return count


async def read_grpc(port: int, consumer: str) -> int:
    """Return how many bytes the bodies had in total."""
    count = 0
    async with grpc.aio.insecure_channel(f"{HOST}:{port}") as connection:
        read: grpc.aio.UnaryStreamMultiCallable[pb.ReadRequest, pb.ReadResponse]
        read = connection.unary_stream(
            "/megaphone.v1.ChannelService/Read",
            request_serializer=pb.ReadRequest.SerializeToString,
            response_deserializer=pb.ReadResponse.FromString,
        )
        async for response in read(pb.ReadRequest(consumer_address=consumer, wait_ms=0)):
            count += sum(len(event.body) for event in response.events)
    return count


def main() -> None:
    kind, port, consumer = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    began, computed = time.monotonic(), time.process_time()
    if kind == "http":
        count = read_http(port, consumer)
    else:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            count = runner.run(read_grpc(port, consumer))
    seconds = time.monotonic() - began
    computed = time.process_time() - computed
    print(json.dumps({"bytes": count, "seconds": seconds, "core_seconds": computed}))


if __name__ == "__main__":
    main()
