"""Inflates bodies that clients have compressed, within bounds on their size and on the work.

aiohttp would inflate a body while it parses, before any handler runs and without a bound. Here a
body is inflated in slices, other tasks run between two slices, and a body that becomes too large is
refused at once.
"""

import zlib
from collections.abc import Iterator

from megaphone.errors import BadRequest, PayloadTooLarge

INPUT_SLICE_BYTES = 16_384
"""How much input is inflated at once, because some input costs time and yields nothing."""
OUTPUT_SLICE_BYTES = 131_072
"""How much output one step may make."""
MAX_RATIO = 100
"""The largest ratio between a body and its compressed form. JSON seldom reaches a fifth of it, and
deflate can reach 1,032. Without this bound a client could make the broker hold and check a megabyte
for each kilobyte that it sends."""
RATIO_FREE_BYTES = 65_536
"""Output up to this size is accepted at any ratio, because it costs little."""

GZIP_WBITS = 16 + zlib.MAX_WBITS
ZLIB_WBITS = zlib.MAX_WBITS
RAW_WBITS = -zlib.MAX_WBITS
DEFLATE_METHOD = 8
"""The value of the lower four bits in the first byte of a zlib header."""
ENCODINGS = ("gzip", "deflate")
GZIP_ALIAS = "x-gzip"
IDENTITIES = ("", "identity")


def inflater_for(encoding: str) -> "Inflater | None":
    """Return the decoder for a Content-Encoding; None for `identity`.

    Raises: BadRequest, if the encoding is not supported.
    """
    name = encoding.strip().lower()
    if name in IDENTITIES:
        return None
    if name not in (*ENCODINGS, GZIP_ALIAS):
        allowed = " and ".join(ENCODINGS)
        raise BadRequest(f"the Content-Encoding of the body is not supported; {allowed} are")
    return Inflater(is_gzip=name != "deflate")


class Inflater:
    """Inflates one body, piece by piece."""

    def __init__(self, *, is_gzip: bool) -> None:
        self._is_gzip = is_gzip
        self._received = 0
        self._inflated = 0
        self._stream: zlib._Decompress | None = None
        """None at the start, and between two members of a gzip file."""

    def pieces(self, received: bytes) -> Iterator[bytes]:
        """Inflate the next part of the body, and yield the output in pieces.

        Each step is short, so that the caller can let other tasks run between two pieces. A piece
        may be empty.

        Raises: BadRequest, if the input is not compressed data; PayloadTooLarge, if it inflates to
            more than `MAX_RATIO` times its size.
        """
        for start in range(0, len(received), INPUT_SLICE_BYTES):
            rest = received[start : start + INPUT_SLICE_BYTES]
            self._received += len(rest)
            has_more = True
            while has_more:
                piece, rest, has_more = self._step(rest)
                yield piece

    def finish(self) -> None:
        """Check that the compressed data is complete. Raises: BadRequest."""
        if self._stream is not None and not self._stream.eof:
            raise undecodable()

    def _step(self, data: bytes) -> tuple[bytes, bytes, bool]:
        """Inflate one slice. Returns: the output, the input that is left, whether to go on."""
        stream = self._stream or zlib.decompressobj(self._wbits(data))
        try:
            piece = stream.decompress(data, OUTPUT_SLICE_BYTES)
        except zlib.error:
            raise undecodable() from None
        self._inflated += len(piece)
        if self._inflated > max(RATIO_FREE_BYTES, MAX_RATIO * self._received):
            raise PayloadTooLarge(
                f"the body inflates to more than {MAX_RATIO} times its size; send it as it is, or"
                f" in parts that inflate to at most {RATIO_FREE_BYTES} bytes"
            )
        if not stream.eof:
            self._stream = stream
            # After a full slice the decompressor may hold more output, even if no input is left.
            has_more = bool(stream.unconsumed_tail) or len(piece) == OUTPUT_SLICE_BYTES
            return piece, stream.unconsumed_tail, has_more
        if stream.unused_data and not self._is_gzip:
            raise undecodable()
        self._stream = None if self._is_gzip else stream
        return piece, stream.unused_data, bool(stream.unused_data)

    def _wbits(self, start: bytes) -> int:
        if self._is_gzip:
            return GZIP_WBITS
        # Some clients send deflate without a zlib header, which the name does not allow.
        return ZLIB_WBITS if start[0] & 0xF == DEFLATE_METHOD else RAW_WBITS


def undecodable() -> BadRequest:
    return BadRequest("the body is not encoded as its headers say")
