"""The name server of the cluster: `python -m tests.operator_e2e.names ACCESS`.

It answers for services from what the API server knows: with the address of a service, or with those
of its endpoints if it is headless. It gives each client the same answer for five seconds, because
the caches of a real cluster do so too.
"""

import asyncio
import random
import struct
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from tests.operator_e2e.addresses import DOMAIN, NAME_SERVER
from tests.operator_e2e.api import Access, Api, Object, name_of, namespace_of, path_of

PORT = 53
REMEMBERED_S = 5.0
"""How long a client gets the same answer."""
TTL_S = 5
HEADER_BYTES = 12
IS_ANSWER, NO_SUCH_NAME = 0x8580, 0x0003
A_RECORD, INTERNET = 1, 1
NAME_IN_QUESTION = 0xC000 | HEADER_BYTES
SERVICE_LABEL = "kubernetes.io/service-name"

Name = tuple[str, str]
"""The namespace and the name of a service."""


@dataclass(slots=True)
class Names:
    """The services of the cluster."""

    services: dict[Name, Object] = field(default_factory=dict)
    slices: list[Object] = field(default_factory=list)

    def addresses_of(self, name: str) -> Sequence[str] | None:
        """Return the addresses of a name, or None if there is no such service."""
        service, _, domain = name.lower().rstrip(".").partition(".")
        namespace, _, rest = domain.partition(".")
        found = self.services.get((namespace, service))
        if found is None or rest != f"svc.{DOMAIN}":
            return None
        if found["spec"].get("clusterIP", "None") != "None":
            return [found["spec"]["clusterIP"]]
        return [
            address
            for one in self.slices
            if namespace_of(one) == namespace
            and one["metadata"].get("labels", {}).get(SERVICE_LABEL) == service
            for endpoint in one.get("endpoints") or ()
            if endpoint.get("conditions", {}).get("ready", True)
            for address in endpoint["addresses"]
        ]

    async def follow_services(self, api: Api) -> None:
        async for services in api.follow(path_of("services")):
            self.services = {(namespace_of(one), name_of(one)): one for one in services.values()}

    async def follow_slices(self, api: Api) -> None:
        async for slices in api.follow(path_of("endpointslices")):
            self.slices = list(slices.values())


class Server(asyncio.DatagramProtocol):
    """Answers questions (RFC 1035, section 4)."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self._remembered: dict[tuple[str, str], tuple[float, Sequence[str] | None]] = {}
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, query: bytes, client: tuple[str, int]) -> None:
        assert self._transport is not None
        name, end = name_in(query)
        addresses = self._recall(client[0], name)
        self._transport.sendto(answer(query, end, addresses), client)

    def _recall(self, client: str, name: str) -> Sequence[str] | None:
        until, addresses = self._remembered.get((client, name), (0.0, None))
        if until < time.monotonic():
            addresses = self._names.addresses_of(name)
            self._remembered[client, name] = time.monotonic() + REMEMBERED_S, addresses
        return addresses


def name_in(query: bytes) -> tuple[str, int]:
    """Return the name of the first question, and where the question ends."""
    labels, at = [], HEADER_BYTES
    while length := query[at]:
        labels.append(query[at + 1 : at + 1 + length].decode("ascii", "replace"))
        at += 1 + length
    return ".".join(labels), at + 5


def answer(query: bytes, end: int, addresses: Sequence[str] | None) -> bytes:
    [kind] = struct.unpack("!H", query[end - 4 : end - 2])
    found = list(addresses or ()) if kind == A_RECORD else []
    random.shuffle(found)
    flags = IS_ANSWER | (NO_SUCH_NAME if addresses is None else 0)
    head = query[:2] + struct.pack("!5H", flags, 1, len(found), 0, 0)
    records = [
        struct.pack("!3HIH", NAME_IN_QUESTION, A_RECORD, INTERNET, TTL_S, 4)
        + bytes(int(part) for part in address.split("."))
        for address in found
    ]
    return b"".join([head, query[HEADER_BYTES:end], *records])


async def main(access: Access) -> None:
    names = Names()
    loop = asyncio.get_running_loop()
    async with Api(access) as api, asyncio.TaskGroup() as group:
        await loop.create_datagram_endpoint(lambda: Server(names), (NAME_SERVER, PORT))
        group.create_task(names.follow_services(api))
        group.create_task(names.follow_slices(api))


if __name__ == "__main__":
    asyncio.run(main(Access.load(Path(sys.argv[1]))))
