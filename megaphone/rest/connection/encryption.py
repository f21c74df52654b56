"""TLS for a connection: decrypts what a client sends, and encrypts what it is sent.

The event loops have TLS of their own, which fits neither promise of a node. It keeps up to 64 KiB
of encrypted bytes in this process, so that an event would count as sent that the kernel does not
have; and it serves new connections with the certificates with which its server began. It also takes
several times the memory for each open read.

So the connection to the client stays one of plain TCP. An `EncryptedTransport` stands between it
and the protocol above: to TCP it is a protocol, and to the protocol above it is a transport.
"""

import asyncio
import ssl
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, cast

from megaphone.listen.certificates import names_of
from megaphone.rest.connection.answer_bytes import refused_plain_text

HANDSHAKE_S = 10.0
"""How long a handshake may take."""
RECORD_BYTES = 16_384
"""The most plain bytes that TLS encrypts as one record, with one signature."""

Bytes = bytes | bytearray | memoryview


class EncryptedTransport(asyncio.Transport):
    """Encrypts one connection. What it cannot decrypt, and a handshake that fails, close it.

    The protocol above has the connection from the beginning, so that connections that shake hands
    count against every limit, but gets nothing before the handshake is done. What it writes before
    then is dropped.
    """

    __slots__ = (
        "_context",
        "_from_client",
        "_is_closing",
        "_is_over",
        "_is_secure",
        "_names",
        "_on_refused",
        "_protocol",
        "_tcp",
        "_timer",
        "_tls",
        "_to_client",
    )

    def __init__(
        self,
        context: ssl.SSLContext,
        protocol: asyncio.Protocol,
        on_refused: Callable[[], None],
    ) -> None:
        """`on_refused` is called when the handshake fails."""
        super().__init__()
        self._context = context
        self._on_refused = on_refused
        self._protocol = protocol
        self._tcp: asyncio.Transport | None = None
        self._from_client = ssl.MemoryBIO()
        self._to_client = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._from_client, self._to_client, server_side=True)
        self._timer: asyncio.TimerHandle | None = None
        self._names: tuple[str, ...] | None = None
        self._is_secure = False
        """Whether the handshake is done."""
        self._is_over = False
        """Whether the client sends nothing more."""
        self._is_closing = False

    @property
    def tcp(self) -> asyncio.Transport:
        """The connection to the client, which takes encrypted bytes."""
        assert self._tcp is not None
        return self._tcp

    def sealed(self, data: Bytes) -> bytes:
        """Return the encrypted form of some bytes. The caller must send it at once."""
        if len(data) <= RECORD_BYTES:
            self._tls.write(data)
        else:
            left = memoryview(data)
            while left:
                left = left[self._tls.write(left) :]
        return self._to_client.read()

    @property
    def certificate_names(self) -> tuple[str, ...]:
        """The names in the certificate of the client, if it was asked for one."""
        if self._names is None:
            certificate = self._tls.getpeercert(binary_form=True) if self._is_secure else None
            self._names = () if certificate is None else names_of(certificate)
        return self._names

    # -- What TCP says

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._tcp = cast("asyncio.Transport", transport)
        self._timer = asyncio.get_running_loop().call_later(HANDSHAKE_S, self.abort)
        self._protocol.connection_made(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._stop_timer()
        self._is_closing = True
        self._protocol.connection_lost(cast("Exception | None", exc))

    def data_received(self, data: bytes) -> None:
        if self._is_over:
            return
        self._from_client.write(data)
        try:
            if not self._is_secure:
                self._tls.do_handshake()
                self._is_secure = True
                self._stop_timer()
            received = self._decrypted()
        except ssl.SSLWantReadError:
            self._flush()
            return
        except ssl.SSLError as error:
            self._fail(error)
            return
        self._flush()
        if received:
            self._protocol.data_received(received)
        self._close_when_over()

    def eof_received(self) -> bool | None:
        if self._is_over:
            return True
        self._is_over = True
        return self._is_secure and self._protocol.eof_received()

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()

    def _decrypted(self) -> bytes:
        """Return everything that has arrived in whole records."""
        pieces = []
        try:
            while self._from_client.pending or self._tls.pending():
                piece = self._tls.read(RECORD_BYTES)
                if not piece:
                    self._is_over = True
                    break
                pieces.append(piece)
        except ssl.SSLWantReadError:  # a part of a record
            pass
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _close_when_over(self) -> None:
        """Close the connection at the end of what the client sends, unless an answer is due."""
        if self._is_over and not self._is_closing and not self._protocol.eof_received():
            self.close()

    def _flush(self) -> None:
        """Send what TLS itself has to say."""
        if self._to_client.pending and not self.tcp.is_closing():
            self.tcp.write(self._to_client.read())

    def _fail(self, error: ssl.SSLError) -> None:
        """Close the connection. TLS has an alert for the client, which says why."""
        self._is_over = True
        if not self._is_secure:
            self._on_refused()
        if error.reason == "HTTP_REQUEST":
            self._to_client.read()
            self.tcp.write(refused_plain_text())
        else:
            self._flush()
        self._is_closing = True
        self.tcp.close()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -- What the protocol above says

    def write(self, data: Bytes) -> None:
        if self._is_secure and data and not self._is_closing:
            self.tcp.write(self.sealed(data))

    def writelines(self, list_of_data: Iterable[Bytes]) -> None:
        self.write(b"".join(list_of_data))

    def close(self) -> None:
        """Say that this is the end, and close the connection when everything is sent."""
        if self._is_closing:
            return
        self._is_closing = True
        if not self._is_secure:
            self.tcp.abort()
            return
        with suppress(ssl.SSLError):  # because the client has not said the same yet
            self._tls.unwrap()
        self._flush()
        self.tcp.close()

    def abort(self) -> None:
        self._is_closing = True
        self.tcp.abort()

    def is_closing(self) -> bool:
        return self._is_closing or self.tcp.is_closing()

    def can_write_eof(self) -> bool:
        return False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "sslcontext":
            return self._context
        return self.tcp.get_extra_info(name, default)

    def pause_reading(self) -> None:
        self.tcp.pause_reading()

    def resume_reading(self) -> None:
        self.tcp.resume_reading()

    def is_reading(self) -> bool:
        return self.tcp.is_reading()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.tcp.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        return self.tcp.get_write_buffer_size()
