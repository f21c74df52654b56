"""The way of bytes between a client and a broker, and the weather on it.

A road has its own port, which stays the same when the broker behind it changes. Weather concerns
the bytes of answers, because that is where clients go wrong; requests pass as they are.
"""

import asyncio
import random
from dataclasses import dataclass, field
from enum import Enum
from typing import Self

from tests.support.links import Link
from tests.support.proxy import reset

PIECE_BYTES = 262_144


class End(Enum):
    """How a connection ends before its time."""

    RESET = "reset"
    CLOSED = "closed in order, in the middle of an answer"
    SILENT = "silent: nothing arrives any more, and nothing says so"


@dataclass(slots=True)
class Weather:
    """What happens to the bytes of answers."""

    rng: random.Random = field(default_factory=random.Random)
    largest_piece: int = PIECE_BYTES
    """Answers arrive in pieces of at most so many bytes, each on its own."""
    longest_pause_s: float = 0.0
    """How long a piece may take to arrive."""
    cuts: int = 0
    """How many connections will end before their time; the rest live on."""
    mean_life_bytes: int = 1_000
    """After how many bytes of answers a connection ends, on average."""
    ends: tuple[End, ...] = tuple(End)
    is_silent: bool = False
    """Whether nothing arrives any more, on any connection."""
    happened: list[End] = field(default_factory=list)

    def life(self) -> float:
        """Return after how many bytes of answers a new connection ends."""
        if not self.cuts:
            return float("inf")
        return self.rng.expovariate(1 / self.mean_life_bytes)

    def end(self) -> End | None:
        """Return how a connection ends whose time has come; None if it lives on after all."""
        if not self.cuts:
            return None
        self.cuts -= 1
        self.happened.append(self.rng.choice(self.ends))
        return self.happened[-1]

    def clear(self) -> None:
        """Let everything pass from now on, as it is."""
        self.largest_piece, self.longest_pause_s, self.cuts = PIECE_BYTES, 0.0, 0
        self.is_silent = False


class Road(Link):
    """A port that passes connections on to a broker, through the weather."""

    def __init__(self, to_port: int = 0, weather: Weather | None = None) -> None:
        super().__init__(to_port)
        self.weather = weather or Weather()

    async def pass_answers(
        self, answers: asyncio.StreamReader, client: asyncio.StreamWriter
    ) -> None:
        left = self.weather.life()
        while data := await answers.read(PIECE_BYTES):
            while data:
                piece = data[: self._piece_bytes(len(data))]
                if len(piece) >= left and (end := self.weather.end()) is not None:
                    await self._end(end, piece[: int(left)], answers, client)
                    return
                left -= len(piece)
                data = data[len(piece) :]
                await self._pass(piece, client)
        if client.can_write_eof():
            client.write_eof()

    def _piece_bytes(self, most: int) -> int:
        largest = min(most, self.weather.largest_piece)
        return most if largest == PIECE_BYTES else self.weather.rng.randint(1, largest)

    async def _pass(self, piece: bytes, client: asyncio.StreamWriter) -> None:
        if self.weather.longest_pause_s:
            await asyncio.sleep(self.weather.rng.uniform(0, self.weather.longest_pause_s))
        if self.weather.is_silent:
            return
        client.write(piece)
        await client.drain()
        if self.weather.largest_piece < PIECE_BYTES:
            await asyncio.sleep(0)

    async def _end(
        self,
        end: End,
        last: bytes,
        answers: asyncio.StreamReader,
        client: asyncio.StreamWriter,
    ) -> None:
        """End a connection. What the broker still sends is lost; what the client still sends
        arrives, until the client leaves."""
        await self._pass(last, client)
        if end is End.RESET:
            reset(client)
            raise ConnectionResetError
        if end is End.CLOSED and client.can_write_eof():
            client.write_eof()
        while await answers.read(PIECE_BYTES):
            pass


class Babbler:
    """A server that answers whatever comes with the same bytes, and closes the connection."""

    def __init__(self, says: bytes) -> None:
        self.port = 0
        self.connections = 0
        self._says = says
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()

    async def _serve(self, requests: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await requests.read(1)
            client.write(self._says)
            await client.drain()
        except ConnectionError:
            pass
        finally:
            client.close()
