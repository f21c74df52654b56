"""A name server whose names have the same addresses, except for some that a test gives others.

A test may change the addresses.
"""

import socket
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

ANSWER = 0x8580
"""The flags of an answer: authoritative, recursion desired and available, no error."""
A_RECORD, INTERNET = 1, 1
TTL_S = 1
HEADER_BYTES = 12


class NameServer:
    """Answers questions for addresses (RFC 1035, section 4)."""

    def __init__(self, addresses: Sequence[str], of_others: Mapping[str, Sequence[str]]) -> None:
        self.addresses = addresses
        self.of_others = of_others
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self._socket.getsockname()[1]}"

    def _serve(self) -> None:
        while True:
            query, client = self._socket.recvfrom(512)
            if not query:
                return
            addresses = self.of_others.get(name_in(query), self.addresses)
            self._socket.sendto(answer(query, addresses), client)

    def close(self) -> None:
        self._socket.sendto(b"", self._socket.getsockname())
        self._thread.join(timeout=5)
        self._socket.close()


def name_in(query: bytes) -> str:
    labels, at = [], HEADER_BYTES
    while length := query[at]:
        labels.append(query[at + 1 : at + 1 + length].decode())
        at += 1 + length
    return ".".join(labels)


def answer(query: bytes, addresses: Sequence[str]) -> bytes:
    end = query.index(b"\0", HEADER_BYTES) + 5  # the name, its type and its class
    question = query[HEADER_BYTES:end]
    kind = struct.unpack("!H", question[-4:-2])[0]
    records = addresses if kind == A_RECORD else ()
    head = query[:2] + struct.pack("!5H", ANSWER, 1, len(records), 0, 0)
    name_is_in_question = 0xC000 | HEADER_BYTES
    return b"".join(
        [
            head,
            question,
            *(
                struct.pack("!3HIH", name_is_in_question, A_RECORD, INTERNET, TTL_S, 4)
                + socket.inet_aton(address)
                for address in records
            ),
        ]
    )


@contextmanager
def name_server(
    addresses: Sequence[str], of_others: Mapping[str, Sequence[str]] | None = None
) -> Iterator[NameServer]:
    """Run a name server. `of_others` has names whose addresses are not `addresses`."""
    server = NameServer(addresses, of_others or {})
    try:
        yield server
    finally:
        server.close()
