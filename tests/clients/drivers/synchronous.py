"""The driver of `megaphone_client.sync.Megaphone`; the README of the suite has its protocol.

    python -m tests.clients.drivers.synchronous

Each command has a thread, as applications without an event loop have.
"""

import json
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from megaphone_client import EventsLost
from megaphone_client.sync import Event, Megaphone, Reader
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
"""How often a read that waits for events looks whether it was stopped."""


class Stop:
    """Ends the iterations of one read from another thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._closing = threading.Lock()
        self._is_set = False
        self._waiting: list[Reader[Any]] = []

    def set(self) -> None:
        """Let each iteration end after the event that its application is busy with."""
        with self._closing:
            with self._lock:
                self._is_set = True
                waiting = list(self._waiting)
            for reader in waiting:
                reader.close()

    def wait(self) -> None:
        """Wait until nobody is closing a reader any more."""
        with self._closing:
            pass

    def __call__(self) -> bool:
        return self._is_set

    def next_of(self, reader: Reader[Any]) -> Event[Any] | None:
        """Return the next event; None if there is none any more, or after `set`."""
        with self._lock:
            if self._is_set:
                return None
            self._waiting.append(reader)
        try:
            return next(reader, None)
        finally:
            with self._lock:
                self._waiting.remove(reader)


class Driver:
    def __init__(self) -> None:
        self._clients: dict[str, tuple[Megaphone, ExitStack]] = {}
        self._stops: dict[str, Stop] = {}
        self._threads: list[threading.Thread] = []
        self._calls: dict[str, Callable[[Command], Any]] = {
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

    def run(self) -> None:
        """Carry out commands until there are no more."""
        report(**{"is": "ready"})
        for line in sys.stdin.buffer:
            thread = threading.Thread(target=self._carry_out, args=(json.loads(line),))
            thread.start()
            self._threads = [thread, *(one for one in self._threads if one.is_alive())]
        for stop in list(self._stops.values()):
            stop.set()
        closing = [
            threading.Thread(target=self._close, args=({"client": name},))
            for name in self._clients.copy()
        ]
        for thread in closing:
            thread.start()
        for thread in (*closing, *self._threads):
            thread.join()

    def _carry_out(self, command: Command) -> None:
        match command["do"]:
            case "read":
                self._iterate(command, self._read)
            case "subscribe":
                self._iterate(command, self._subscribe)
            case "stop":
                if (stop := self._stops.get(command["read"])) is not None:
                    stop.set()
            case name:
                self._call(self._calls[name], command)

    # -- Calls

    def _call(self, call: Callable[[Command], Any], command: Command) -> None:
        try:
            result = call(command)
        except Exception as error:
            report(**{"is": "error"}, call=command["call"], **described(error))
        else:
            report(**{"is": "done"}, call=command["call"], result=result)

    def _client(self, command: Command) -> Megaphone:
        return self._clients[command["client"]][0]

    def _open(self, command: Command) -> None:
        stack = ExitStack()
        options = {"timeout_s": command["timeout_s"]} if "timeout_s" in command else {}
        client = stack.enter_context(Megaphone.from_url(command["url"], **options))
        self._clients[command["client"]] = client, stack

    def _close(self, command: Command) -> None:
        _, stack = self._clients.pop(command["client"])
        stack.close()

    def _create(self, command: Command) -> dict[str, str]:
        channel = self._client(command).create()
        return {"producer": channel.producer, "consumer": channel.consumer}

    def _write(self, command: Command) -> str:
        return self._client(command).write(
            command["producer"],
            command["stream"],
            command["body"],
            timeout_s=command.get("timeout_s"),
        )

    def _batch(self, command: Command) -> list[list[Any]]:
        messages = [(stream, body) for stream, body in command["messages"]]
        failures = self._client(command).write_batch(command["producers"], messages)
        return [[one.producer, one.index, one.reason] for one in failures]

    def _publish(self, command: Command) -> list[dict[str, Any]]:
        with self._client(command).publisher() as publisher:
            sent = [publisher.send(*item) for item in command["items"]]
            # Here, because at its end the publisher raises an error that nobody has seen.
            return [outcome_of(one.result) for one in sent]

    def _exists(self, command: Command) -> dict[str, bool]:
        return self._client(command).exists(command["addresses"])

    def _ack(self, command: Command) -> int:
        return self._client(command).ack(command["consumer"], command["event"])

    def _first(self, command: Command) -> Any:
        with self._client(command).subscribe(command["consumer"]) as subscriptions:
            return subscriptions.first(command["stream"], timeout_s=command.get("timeout_s"))

    # -- Reads

    def _iterate(self, command: Command, iterate: Callable[[Command, Stop], str | None]) -> None:
        name = command["read"]
        self._stops[name] = stop = Stop()
        try:
            cursor = iterate(command, stop)
            stop.wait()
        except Failed as failed:
            told = described(failed.error)
            report(**{"is": "error"}, read=name, cursor=failed.cursor, **told)
        else:
            report(**{"is": "ended"}, read=name, cursor=cursor)
        finally:
            del self._stops[name]

    def _read(self, command: Command, stop: Stop) -> str | None:
        reader = self._reader(command)
        try:
            with reader:
                Application(command, reader).run(stop)
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

    def _subscribe(self, command: Command, stop: Stop) -> str | None:
        options = read_options(command)
        streams = options.pop("streams")
        errors: list[Exception] = []

        def take(reader: Reader[Any]) -> None:
            try:
                Application(command, reader).run(stop)
            except Exception as error:
                errors.append(error)

        with self._client(command).subscribe(command["consumer"], **options) as subscriptions:
            readers = [subscriptions.stream(stream) for stream in streams]
            threads = [threading.Thread(target=take, args=(reader,)) for reader in readers]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        if errors:
            raise Failed(errors[0], None)
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

    def run(self, stop: Stop) -> None:
        """Take events until the read ends or is stopped."""
        ask = self._ask_for_one if self._command.get("each", True) else self._ask_for_batch
        while not stop():
            try:
                events = ask(stop)
            except EventsLost:
                report(**{"is": "gap"}, read=self._command["read"])
                continue
            if events is None:
                return
            self._deal_with(events)

    def _ask_for_one(self, stop: Stop) -> list[Event[Any]] | None:
        event = stop.next_of(self._reader)
        return None if event is None else [event]

    def _ask_for_batch(self, stop: Stop) -> list[Event[Any]] | None:
        if self._count == self._command.get("limit"):
            return None
        return self._reader.batch(LARGEST_BATCH, wait_s=LOOKS_EVERY_S)

    def _deal_with(self, events: list[Event[Any]]) -> None:
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
            time.sleep(pause_after(self._command, self._count))
            if acknowledges_after(self._command, self._count):
                self._acknowledge(event)

    def _acknowledge(self, event: Event[Any]) -> None:
        try:
            event.ack()
        except Exception as error:
            told = described(error)
            report(**{"is": "unacked"}, read=self._command["read"], id=event.id, **told)


def outcome_of(result: Callable[[], str | None]) -> dict[str, Any]:
    try:
        return {"id": result()}
    except Exception as error:
        return described(error)


if __name__ == "__main__":
    Driver().run()
