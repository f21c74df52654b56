"""The driver of `megaphone_client.Megaphone`; the README of the suite has its protocol.

python -m tests.clients.drivers.asynchronous
"""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

from megaphone_client import Event, EventsLost, Megaphone, Reader
from tests.clients.drivers.lines import (
    Command,
    acknowledges_after,
    described,
    pause_after,
    read_options,
    report,
)

LARGEST_BATCH = 100
LOOKS_EVERY_S = 0.2


class Driver:
    def __init__(self) -> None:
        self._clients: dict[str, tuple[Megaphone, AsyncExitStack]] = {}
        self._stops: dict[str, asyncio.Event] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._calls: dict[str, Callable[[Command], Awaitable[Any]]] = {
            "open": self._open,
            "close": self._close,
            "create": self._create,
            "write": self._write,
            "batch": self._batch,
            "publish": self._publish,
            "exists": self._exists,
            "ack": self._ack,
            "first": self._first,
        }

    async def run(self) -> None:
        """Carry out commands until there are no more."""
        report(**{"is": "ready"})
        while line := await asyncio.to_thread(sys.stdin.buffer.readline):
            task = asyncio.create_task(self._carry_out(json.loads(line)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        for stop in self._stops.values():
            stop.set()
        await asyncio.gather(*(self._close({"client": name}) for name in self._clients.copy()))
        await asyncio.gather(*self._tasks)

    async def _carry_out(self, command: Command) -> None:
        match command["do"]:
            case "read":
                await self._iterate(command, self._read)
            case "subscribe":
                await self._iterate(command, self._subscribe)
            case "stop":
                if (stop := self._stops.get(command["read"])) is not None:
                    stop.set()
            case name:
                await self._call(self._calls[name], command)

    # -- Calls

    async def _call(self, call: Callable[[Command], Awaitable[Any]], command: Command) -> None:
        try:
            result = await call(command)
        except Exception as error:
            report(**{"is": "error"}, call=command["call"], **described(error))
        else:
            report(**{"is": "done"}, call=command["call"], result=result)

    def _client(self, command: Command) -> Megaphone:
        return self._clients[command["client"]][0]

    async def _open(self, command: Command) -> None:
        stack = AsyncExitStack()
        options = {"timeout_s": command["timeout_s"]} if "timeout_s" in command else {}
        client = Megaphone.from_url(command["url"], **options)
        await stack.enter_async_context(client)
        self._clients[command["client"]] = client, stack

    async def _close(self, command: Command) -> None:
        _, stack = self._clients.pop(command["client"])
        await stack.aclose()

    async def _create(self, command: Command) -> dict[str, str]:
        channel = await self._client(command).create()
        return {"producer": channel.producer, "consumer": channel.consumer}

    async def _write(self, command: Command) -> str:
        return await self._client(command).write(
            command["producer"],
            command["stream"],
            command["body"],
            timeout_s=command.get("timeout_s"),
        )

    async def _batch(self, command: Command) -> list[list[Any]]:
        messages = [(stream, body) for stream, body in command["messages"]]
        failures = await self._client(command).write_batch(command["producers"], messages)
        return [[one.producer, one.index, one.reason] for one in failures]

    async def _publish(self, command: Command) -> list[dict[str, Any]]:
        async with self._client(command).publisher() as publisher:
            sent = [await publisher.send(*item) for item in command["items"]]
            # Here, because at its end the publisher raises an error that nobody has seen.
            return [await outcome_of(one) for one in sent]

    async def _exists(self, command: Command) -> dict[str, bool]:
        return await self._client(command).exists(command["addresses"])

    async def _ack(self, command: Command) -> int:
        return await self._client(command).ack(command["consumer"], command["event"])

    async def _first(self, command: Command) -> Any:
        async with self._client(command).subscribe(command["consumer"]) as subscriptions:
            return await subscriptions.first(command["stream"], timeout_s=command.get("timeout_s"))

    # -- Reads

    async def _iterate(
        self, command: Command, iterate: Callable[[Command, asyncio.Event], Awaitable[str | None]]
    ) -> None:
        name = command["read"]
        self._stops[name] = stop = asyncio.Event()
        cursor = None
        try:
            cursor = await iterate(command, stop)
        except Failed as failed:
            told = described(failed.error)
            report(**{"is": "error"}, read=name, cursor=failed.cursor, **told)
        else:
            report(**{"is": "ended"}, read=name, cursor=cursor)
        finally:
            del self._stops[name]

    async def _read(self, command: Command, stop: asyncio.Event) -> str | None:
        reader = self._reader(command)
        try:
            async with reader:
                await Application(command, reader).run(stop)
        except Exception as error:
            raise Failed(error, reader.cursor) from error
        return reader.cursor

    def _reader(self, command: Command) -> Reader[Any]:
        client, options = self._client(command), read_options(command)
        if command.get("gaps") == "call":

            def on_gap(*_: object) -> None:
                report(**{"is": "gap"}, read=command["read"])

            options["on_gap"] = on_gap
        consumers = command["consumers"]
        if len(consumers) == 1:
            return client.read(consumers[0], **options)
        return client.read_many(consumers, **options)

    async def _subscribe(self, command: Command, stop: asyncio.Event) -> str | None:
        options = read_options(command)
        streams = options.pop("streams")
        try:
            async with (
                self._client(command).subscribe(command["consumer"], **options) as subscriptions,
                asyncio.TaskGroup() as group,
            ):
                for stream in streams:
                    reader = subscriptions.stream(stream)
                    group.create_task(Application(command, reader).run(stop))
        except* Exception as errors:
            [error, *_] = errors.exceptions
            raise Failed(error, None) from error
        return None


class Failed(Exception):
    def __init__(self, error: BaseException, cursor: str | None) -> None:
        super().__init__(error)
        self.error = error
        self.cursor = cursor


class Application:
    """Takes the events of one read, and is busy with each as the command says."""

    def __init__(self, command: Command, reader: Reader[Any]) -> None:
        self._command = command
        self._reader = reader
        self._has_several = len(command.get("consumers", ())) > 1
        self._count = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Take events until the read ends or `stop` is set."""
        stopped = asyncio.create_task(stop.wait())
        try:
            while not stop.is_set():
                asking = asyncio.create_task(self._ask())
                await asyncio.wait({asking, stopped}, return_when=asyncio.FIRST_COMPLETED)
                if not asking.done():
                    asking.cancel()
                    await asyncio.wait({asking})
                    if asking.cancelled():
                        return
                try:
                    events = asking.result()
                except EventsLost:
                    report(**{"is": "gap"}, read=self._command["read"])
                    continue
                if events is None:
                    return
                await self._deal_with(events)
        finally:
            stopped.cancel()

    async def _ask(self) -> list[Event[Any]] | None:
        """Return the next events; None at the end."""
        if self._command.get("each", True):
            try:
                return [await anext(self._reader)]
            except StopAsyncIteration:
                return None
        return await self._reader.batch(LARGEST_BATCH, wait_s=LOOKS_EVERY_S)

    async def _deal_with(self, events: list[Event[Any]]) -> None:
        for event in events:
            self._count += 1
            whose = {"consumer": event.consumer} if self._has_several else {}
            report(
                **{"is": "event"},
                read=self._command["read"],
                id=event.id,
                stream=event.stream,
                body=event.body,
                **whose,
            )
            await asyncio.sleep(pause_after(self._command, self._count))
            if acknowledges_after(self._command, self._count):
                await self._acknowledge(event)

    async def _acknowledge(self, event: Event[Any]) -> None:
        try:
            await event.ack()
        except Exception as error:
            told = described(error)
            report(**{"is": "unacked"}, read=self._command["read"], id=event.id, **told)


async def outcome_of(sent: Awaitable[str | None]) -> dict[str, Any]:
    try:
        return {"id": await sent}
    except Exception as error:
        return described(error)


if __name__ == "__main__":
    asyncio.run(Driver().run())
