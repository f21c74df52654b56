"""`Megaphone`: a client of one broker, or of many behind one address."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from ssl import SSLContext
from typing import Any, Final, Self, TypeVar, overload

from megaphone_client.bodies import decoder, encode
from megaphone_client.encryption import AnyPath, Certificate, Encryption, encryption_of
from megaphone_client.errors import CLASSES, ChannelNotFound, MegaphoneError, Unavailable
from megaphone_client.events import Channel, Failure
from megaphone_client.publishing import Publisher
from megaphone_client.reading import (
    INBOX_BYTES,
    INBOX_EVENTS,
    Ack,
    Inbox,
    OnGap,
    Pump,
    Reader,
    Reads,
    Sink,
    run_alone,
)
from megaphone_client.retrying import repeated
from megaphone_client.state import ReadState
from megaphone_client.subscriptions import Renew, Subscriptions
from megaphone_client.together import Together
from megaphone_client.tracing import current_traceparent
from megaphone_client.transport import (
    Create,
    Headers,
    Message,
    Token,
    Transport,
    by_agent,
    with_token,
)
from megaphone_client.urls import Target, parse_url

T = TypeVar("T")
LONGEST_WRITE_S: Final = 55.0
"""The broker forgets idempotency keys after 60 seconds."""
VARIABLE: Final = "MEGAPHONE_TOKEN"
LEAST_HEARTBEAT_S: Final = 0.001


class NotYet(Unavailable):
    """The broker cannot take a part of a batch now."""

    def __init__(self, failures: list[Failure], code: str) -> None:
        super().__init__(code, f"not all was taken: {code}")
        self.failures = failures


class Megaphone:
    """A client of the broker. Use it as a context manager, or call `aclose`.

    It connects at the first call. It belongs to the event loop in which it is first used. Many
    tasks may use it.
    """

    def __init__(
        self,
        target: Target,
        *,
        timeout_s: float,
        headers: Headers | None,
        encryption: Encryption,
        trust_env: bool,
        idempotent: bool,
    ) -> None:
        """Use `from_url`."""
        self._target = target
        self._timeout_s = timeout_s
        self._headers = headers
        self._encryption = encryption
        self._trust_env = trust_env
        self._idempotent = idempotent
        self._transport: Transport | None = None
        self._reads: set[Reads] = set()
        self._is_closed = False

    @classmethod
    def from_url(
        cls,
        url: str | None = None,
        *,
        timeout_s: float = 30.0,
        token: Token | None = None,
        headers: Headers | None = None,
        ssl: SSLContext | None = None,
        ca: AnyPath | None = None,
        certificate: Certificate | None = None,
        trust_env: bool = False,
        idempotent: bool = True,
    ) -> Self:
        """Return a client for a URL: `http://host:3000`, `https://host/prefix`,
        `grpc://host:3001` or `grpcs://host:3001`; by default that in `MEGAPHONE_URL`, or
        `http://localhost:3000`.

        `timeout_s` is how long a call may take, with all its tries. It does not limit reads.
        `token` goes with every call; without it that in `MEGAPHONE_TOKEN`, if the URL has no
        password. An asynchronous function is asked for it before each call, so it may return
        another one before the last one expires. `headers` go with every call too, as metadata over
        gRPC; an asynchronous function is asked for them before each call. `trust_env` uses the
        proxy that the environment names. With `idempotent=False` a write has no idempotency key,
        and is not tried again if it may have been taken.

        With `https://` and `grpcs://`, `ca` is a file of the authorities that the client trusts
        instead of those of the system, and `certificate` its own certificate: a file that has its
        key too, or the two files. Without both, they are those in `MEGAPHONE_CA`,
        `MEGAPHONE_CERTIFICATE` and `MEGAPHONE_KEY`. `ssl` takes the place of all of them; of it,
        gRPC uses only which certificates it trusts.

        Raises: ValueError, if the URL is not one of these, `timeout_s` is not from 0 to 55, or the
            token is not a text of visible ASCII characters; OSError or ValueError, if a file is
            missing or wrong.
        """
        check_timeout(timeout_s)
        target = parse_url(url)
        if token is None and target.authorization is None:
            token = os.environ.get(VARIABLE, "").strip() or None
        return cls(
            target,
            timeout_s=timeout_s,
            headers=with_token(token, headers),
            encryption=encryption_of(ssl, ca, certificate, is_encrypted=target.is_encrypted),
            trust_env=trust_env,
            idempotent=idempotent,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End all reads, with their last acknowledgements, and close the connections."""
        await asyncio.gather(*(reads.aclose() for reads in list(self._reads)))
        self._is_closed = True
        if self._transport is not None:
            transport, self._transport = self._transport, None
            await transport.aclose()

    # -- Writing

    async def create(
        self,
        protocols: Sequence[str] = (),
        *,
        ttl_s: float | None = None,
        capacity: int | None = None,
        label: str | None = None,
    ) -> Channel:
        """Create a channel. `protocols` are those that the consumer can read, best first.

        The channel lives for `ttl_s` seconds after its last read, or after its creation, and has
        `capacity` places for events that are not delivered yet. Without them it has what the broker
        gives each channel. `label` is a name by which the operators of the broker recognise the
        channel: at most 64 visible ASCII characters and spaces.

        Raises: BadRequest, if the channel asks for more than the broker allows; LimitExceeded,
            Unavailable, ConnectionFailed, and other errors of the broker.
        """
        request = Create(protocols, ttl_s, capacity, label)
        transport = await self._connected()
        return await repeated(
            lambda left_s: transport.create(request, left_s), self._timeout_s, is_write=False
        )

    async def write(
        self,
        producer: str,
        stream: str,
        body: object,
        *,
        key: str | None = None,
        timeout_s: float | None = None,
        traceparent: str | None = None,
    ) -> str:
        """Write one event. Returns its id, when the broker has it.

        `body` is any object that JSON has a form for; `bytes` are JSON already. If the channel is
        full, the call waits. `key` is an idempotency key, if the one that the client makes is not
        enough. `timeout_s` is at most 55. `traceparent` is the trace context of the event, by
        default that of the present span, if the app uses OpenTelemetry and the span is sampled.

        Raises: WriteTimeout, if the channel stayed full and the event was not taken;
            OutcomeUnknown, if it may have been taken; ChannelNotFound and other errors of the
            broker.
        """
        trace = traceparent or current_traceparent()
        message = Message(producer, stream, encode(body), key or self._new_key(), trace)
        transport = await self._connected()
        return await repeated(
            lambda left_s: transport.write(message, left_s),
            self._checked(timeout_s),
            is_repeatable=message.key is not None,
        )

    async def write_batch(
        self,
        producers: Iterable[str],
        messages: Iterable[tuple[str, object]],
        *,
        key: str | None = None,
        timeout_s: float | None = None,
        traceparent: str | None = None,
    ) -> list[Failure]:
        """Write the same events, given as pairs of stream and body, to many channels.

        Channels of different agents need a request each. What a broker cannot take now, because the
        channel moves to another one, is tried again. Returns: which channel did not take which
        event. Raises: as `write` does, if every request failed; if only some did, their events are
        among the failures, with the code of the error as the reason. `traceparent` is as in
        `write`.
        """
        encoded = [(stream, encode(body)) for stream, body in messages]
        key = key or self._new_key()
        limit_s = self._checked(timeout_s)
        trace = traceparent or current_traceparent()
        transport = await self._connected()

        async def once(addresses: Sequence[str], left_s: float) -> list[Failure]:
            failures = await transport.write_batch(addresses, encoded, key, left_s, trace)
            if key is not None:  # without one, what was taken would be stored twice
                for failure in failures:
                    if CLASSES.get(failure.reason) is Unavailable:
                        raise NotYet(failures, failure.reason)
            return failures

        async def write(addresses: Sequence[str]) -> list[Failure] | MegaphoneError:
            try:
                return await repeated(
                    lambda left_s: once(addresses, left_s), limit_s, is_repeatable=key is not None
                )
            except NotYet as error:
                return error.failures
            except MegaphoneError as error:
                # The broker answered for each channel: it is not unknown what the others took.
                return error.__cause__.failures if isinstance(error.__cause__, NotYet) else error

        groups = by_agent(producers) or [[]]
        results = await asyncio.gather(*map(write, groups))
        failures: list[Failure] = []
        errors: list[MegaphoneError] = []
        for group, result in zip(groups, results, strict=True):
            if isinstance(result, MegaphoneError):
                errors.append(result)
                failures += [
                    Failure(producer, index, result.code)
                    for producer in group
                    for index in range(len(encoded))
                ]
            else:
                failures += result
        if len(errors) == len(groups):
            raise errors[0]
        return failures

    def publisher(
        self,
        *,
        linger_s: float = 0.005,
        max_batch: int = 100,
        max_bytes: int = 262_144,
        max_pending: int = 1_000,
    ) -> AbstractAsyncContextManager[Publisher]:
        """Return a context in which many events are written in batches.

        A batch goes out after `linger_s`, or when it has `max_batch` events or `max_bytes` bytes.
        `send` waits while `max_pending` events are on their way.
        """
        return Publisher(
            self._connected,
            linger_s=linger_s,
            max_batch=max_batch,
            max_bytes=max_bytes,
            max_pending=max_pending,
            timeout_s=self._timeout_s,
            idempotent=self._idempotent,
        )

    # -- Reading

    @overload
    def read(
        self,
        consumer: str,
        *,
        decode: Callable[[bytes], T],
        streams: Iterable[str] | None = None,
        ack: Ack = "auto",
        after: str | None = None,
        limit: int | None = None,
        take_over: bool = False,
        on_gap: OnGap | None = None,
        heartbeat_s: float = 10.0,
        trace: bool = False,
    ) -> Reader[T]: ...
    @overload
    def read(
        self,
        consumer: str,
        *,
        type: type[T],
        streams: Iterable[str] | None = None,
        ack: Ack = "auto",
        after: str | None = None,
        limit: int | None = None,
        take_over: bool = False,
        on_gap: OnGap | None = None,
        heartbeat_s: float = 10.0,
        trace: bool = False,
    ) -> Reader[T]: ...
    @overload
    def read(
        self,
        consumer: str,
        *,
        streams: Iterable[str] | None = None,
        ack: Ack = "auto",
        after: str | None = None,
        limit: int | None = None,
        take_over: bool = False,
        on_gap: OnGap | None = None,
        heartbeat_s: float = 10.0,
        trace: bool = False,
    ) -> Reader[Any]: ...
    def read(
        self,
        consumer: str,
        *,
        type: Any = Any,
        decode: Callable[[bytes], Any] | None = None,
        streams: Iterable[str] | None = None,
        ack: Ack = "auto",
        after: str | None = None,
        limit: int | None = None,
        take_over: bool = False,
        on_gap: OnGap | None = None,
        heartbeat_s: float = 10.0,
        trace: bool = False,
    ) -> Reader[Any]:
        """Return the events of a channel.

        `type` is what `event.body` is decoded to: a dataclass, a TypedDict, a Struct of msgspec;
        `decode` is a function for anything else. `streams` names the only streams that are wanted.

        With `ack="auto"` the broker keeps an event until the app asks for the next one; with
        "manual" until `event.ack()`; with "none" it keeps only the last 100 events. `after` is the
        cursor of an earlier reader; "-" stands before the first event. `limit` ends the read after
        so many events. `take_over` ends the read of another reader; without it, the client waits 30
        seconds for that one to leave, and then raises ReaderBusy. If another reader takes over from
        this one, or gets the channel while this one has lost its connection, this one raises
        TakenOver. `on_gap` is called where events are missing. After 2.5 times `heartbeat_s`
        without a byte from the broker the client connects again. With `trace`, events have their
        `traceparent`; a broker older than traces refuses that.
        """
        return self._reader(
            [
                self._state(
                    consumer,
                    after,
                    ack,
                    limit,
                    heartbeat_s,
                    streams,
                    take_over=take_over,
                    trace=trace,
                )
            ],
            decoder(type, decode),
            ack,
            on_gap,
        )

    @overload
    def read_many(
        self,
        consumers: Iterable[str],
        *,
        decode: Callable[[bytes], T],
        streams: Iterable[str] | None = None,
        ack: Ack = "auto",
        after: Mapping[str, str] | None = None,
        on_gap: OnGap | None = None,
        heartbeat_s: float = 10.0,
        trace: bool = False,
    ) -> Reader[T]: ...
    @overload
    def read_many(
        self,
        consumers: Iterable[str],
        *,
        type: type[T],
        streams: Iterable[str] | None = None,
        ack: Ack = "auto",
        after: Mapping[str, str] | None = None,
        on_gap: OnGap | None = None,
        heartbeat_s: float = 10.0,
        trace: bool = False,
    ) -> Reader[T]: ...
    @overload
    def read_many(
        self,
        consumers: Iterable[str],
        *,
        streams: Iterable[str] | None = None,
        ack: Ack = "auto",
        after: Mapping[str, str] | None = None,
        on_gap: OnGap | None = None,
        heartbeat_s: float = 10.0,
        trace: bool = False,
    ) -> Reader[Any]: ...
    def read_many(
        self,
        consumers: Iterable[str],
        *,
        type: Any = Any,
        decode: Callable[[bytes], Any] | None = None,
        streams: Iterable[str] | None = None,
        ack: Ack = "auto",
        after: Mapping[str, str] | None = None,
        on_gap: OnGap | None = None,
        heartbeat_s: float = 10.0,
        trace: bool = False,
    ) -> Reader[Any]:
        """Return the events of many channels, in order for each of them. `event.consumer` names the
        channel; `after` has cursors by it. Up to 100 channels of one agent share a connection.

        If a channel ends, the reader raises its error, and goes on with the others when it is asked
        again. The arguments are those of `read`.
        """
        wanted = None if streams is None else list(streams)
        cursors = after or {}
        name = name_of_reader()
        states = [
            self._state(
                consumer,
                cursors.get(consumer),
                ack,
                None,
                heartbeat_s,
                wanted,
                reader=name,
                trace=trace,
            )
            for consumer in dict.fromkeys(consumers)
        ]
        if not states:
            raise ValueError("there is no channel to read")
        return self._reader(states, decoder(type, decode), ack, on_gap)

    @asynccontextmanager
    async def subscribe(
        self,
        consumer: str,
        *,
        ack: Ack = "auto",
        after: str | None = None,
        on_gap: OnGap | None = None,
        heartbeat_s: float = 10.0,
        trace: bool = False,
        renew: Renew | None = None,
    ) -> AsyncIterator[Subscriptions]:
        """Read a channel within this context, each of its streams by a reader of its own.

        `renew` gets the consumer address of a channel that has gone, and returns that of a new one,
        which is read from then on. The other arguments are those of `read`.
        """
        first = self._state(consumer, after, ack, None, heartbeat_s, None, trace=trace)
        decode = decoder(Any, None)

        def pump(address: str, sink: Sink) -> Pump:
            state = first
            if address != consumer:
                state = self._state(address, None, ack, None, heartbeat_s, None, trace=trace)
            return self._pump(state, sink, decode)

        subscriptions = Subscriptions(
            consumer, pump, deals=ack != "manual", on_gap=on_gap, renew=renew
        )
        subscriptions.begin()
        try:
            yield subscriptions
        finally:
            await subscriptions.aclose()

    # -- Asking and acknowledging

    async def exists(self, addresses: Iterable[str]) -> dict[str, bool]:
        """Return for each producer or consumer address whether its channel exists."""
        transport = await self._connected()

        async def ask(group: Sequence[str]) -> dict[str, bool]:
            return await repeated(
                lambda left_s: transport.exists(group, left_s), self._timeout_s, is_write=False
            )

        answers = await asyncio.gather(*map(ask, by_agent(addresses)))
        return {address: exists for answer in answers for address, exists in answer.items()}

    async def ack(self, consumer: str, event_id: str) -> int:
        """Acknowledge an event and all before it in its channel. Returns how many of them were not
        acknowledged before."""
        transport = await self._connected()
        return await repeated(
            lambda left_s: transport.acknowledge(consumer, event_id, left_s),
            self._timeout_s,
            is_write=False,
        )

    async def dispose(self, producer: str) -> bool:
        """Remove a channel with all its events now. Returns whether it was still there, but False
        also if a first try has removed it whose answer was lost."""
        transport = await self._connected()
        try:
            await repeated(
                lambda left_s: transport.dispose(producer, left_s), self._timeout_s, is_write=False
            )
        except ChannelNotFound:
            return False
        return True

    # -- Parts

    def _new_key(self) -> str | None:
        return os.urandom(16).hex() if self._idempotent else None

    def _checked(self, timeout_s: float | None) -> float:
        if timeout_s is None:
            return self._timeout_s
        check_timeout(timeout_s)
        return timeout_s

    def _state(
        self,
        consumer: str,
        after: str | None,
        ack: Ack,
        limit: int | None,
        heartbeat_s: float,
        streams: Iterable[str] | None,
        *,
        take_over: bool = False,
        reader: str | None = None,
        trace: bool = False,
    ) -> ReadState:
        if ack not in ("auto", "manual", "none"):
            raise ValueError('`ack` is "auto", "manual" or "none"')
        if heartbeat_s < LEAST_HEARTBEAT_S:
            raise ValueError("`heartbeat_s` is at least 0.001")
        if limit is not None and limit < 1:
            raise ValueError("`limit` is at least 1")
        return ReadState(
            consumer,
            after=after,
            acknowledges=ack != "none",
            limit=limit,
            heartbeat_s=heartbeat_s,
            streams=streams,
            takes_over=take_over,
            reader=reader or name_of_reader(),
            trace=trace,
        )

    def _pump(self, state: ReadState, sink: Sink, decode: Callable[[bytes], Any]) -> Pump:
        return Pump(self._connected, state, sink, decode, self._timeout_s)

    def _reader(
        self,
        states: Sequence[ReadState],
        decode: Callable[[bytes], Any],
        ack: Ack,
        on_gap: OnGap | None,
    ) -> Reader[Any]:
        # While a read acknowledges, the broker's window is the limit.
        inbox = Inbox(INBOX_EVENTS, INBOX_BYTES) if ack == "none" else Inbox()

        async def together(
            pumps: Sequence[Pump], ended: Callable[[MegaphoneError | None], None]
        ) -> None:
            await Together(await self._connected(), inbox, pumps, ended).run()

        reads = Reads(
            states,
            lambda state, sink: self._pump(state, sink, decode),
            run_alone if len(states) == 1 else together,
            inbox,
            self._reads.add,
            self._reads.discard,
        )
        return Reader(reads, deals=ack != "manual", on_gap=on_gap)

    async def _connected(self) -> Transport:
        """Return the transport. Its library is imported now, because that takes a while."""
        if self._is_closed:
            raise RuntimeError("the client is closed")
        if self._transport is None:
            self._transport = connect(
                self._target, self._headers, self._encryption, trust_env=self._trust_env
            )
        return self._transport


def connect(
    target: Target, headers: Headers | None, encryption: Encryption, *, trust_env: bool
) -> Transport:
    if target.is_grpc:
        from megaphone_client.grpc import GrpcTransport

        return GrpcTransport(target, headers, encryption, trust_env=trust_env)
    from megaphone_client.http import HttpTransport

    return HttpTransport(target, headers, encryption, trust_env=trust_env)


def name_of_reader() -> str:
    """Return a name that no other reader has."""
    return os.urandom(8).hex()


def check_timeout(timeout_s: float) -> None:
    if not 0 < timeout_s <= LONGEST_WRITE_S:
        raise ValueError(
            "`timeout_s` is more than 0 and at most 55, because the broker forgets after 60 seconds"
            " which writes it has taken"
        )
