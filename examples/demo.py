"""Starts a broker, the back ends of both examples and their pages, until Ctrl-C: `make demo`.

Enter stops the broker for some seconds, to show that nobody misses a message meanwhile.
Ports other than 3000, 8000 and 8001 may follow: of the broker, the chat and the jobs.
"""

import os
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn
from urllib.error import URLError
from urllib.request import urlopen

HERE = Path(__file__).parent
MEGAPHONE = Path(sys.executable).with_name("megaphone")
HOST = "127.0.0.1"
PORTS = (3000, 8000, 8001)
STARTS_WITHIN_S = 30.0
STOPS_WITHIN_S = 10.0
LOOKS_EVERY_S = 0.2
STOPPED_S = 3.0


def main(broker_port: int, chat_port: int, jobs_port: int) -> None:
    for port in (broker_port, chat_port, jobs_port):
        check_free(port)
    signal.signal(signal.SIGTERM, end)
    broker, chat, jobs = (f"http://{HOST}:{port}" for port in (broker_port, chat_port, jobs_port))
    settings = {
        "megaphone_address": f"{HOST}:{broker_port}",
        "megaphone_grpc_address": f"{HOST}:0",
        "megaphone_cors_allow_origin": f"{chat},{jobs}",
        "megaphone_webhooks.chat.endpoint": f"{chat}/gone",
        "megaphone_webhooks_allow": HOST,
    }
    url = {"MEGAPHONE_URL": broker}
    programs: dict[str, tuple[list[str | Path], dict[str, str]]] = {
        "broker": ([MEGAPHONE, "serve"], settings),
        "chat": ([sys.executable, HERE / "chat" / "chat.py", str(chat_port)], url),
        "jobs": ([sys.executable, HERE / "jobs" / "jobs.py", str(jobs_port)], url),
    }
    running: dict[str, subprocess.Popen[bytes]] = {}

    def start(name: str) -> None:
        command, variables = programs[name]
        running[name] = subprocess.Popen(
            command, env=os.environ | variables, stdin=subprocess.DEVNULL
        )

    with suppress(KeyboardInterrupt), ExitStack() as stack:
        stack.callback(stop, running)
        for name in programs:
            start(name)
        for link in (f"{broker}/livez", chat, jobs):
            wait_for(link, running)
        print(f"A chat: {chat}/ (open it twice)", f"A long request: {jobs}/", sep="\n")
        print("Enter stops the broker for 3 seconds. Ctrl-C ends the demo.", flush=True)
        while True:
            check_running(running)
            if is_enter_pressed():
                print("The broker stops.", flush=True)
                stop({"broker": running["broker"]})
                time.sleep(STOPPED_S)
                start("broker")
                wait_for(f"{broker}/livez", running)
                print("The broker is there again.", flush=True)


def is_enter_pressed() -> bool:
    """Wait for a moment whether somebody presses Enter."""
    if not sys.stdin.isatty():
        time.sleep(LOOKS_EVERY_S)
        return False
    can_be_read, _, _ = select.select([sys.stdin], [], [], LOOKS_EVERY_S)
    return bool(can_be_read) and bool(sys.stdin.readline())


def end(signal_number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def check_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            sys.exit(
                f"port {port} cannot be used: {error.strerror}. Name three others:"
                " python examples/demo.py BROKER CHAT JOBS"
            )


def check_running(running: "dict[str, subprocess.Popen[bytes]]") -> None:
    """Leave if a program has ended by itself; it has said why."""
    for name, process in running.items():
        if process.poll() is not None:
            sys.exit(f"the demo ends, because the {name} has ended")


def stop(running: "dict[str, subprocess.Popen[bytes]]") -> None:
    for process in running.values():
        process.terminate()
    for process in running.values():
        try:
            process.wait(STOPS_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(url: str, running: "dict[str, subprocess.Popen[bytes]]") -> None:
    until = time.monotonic() + STARTS_WITHIN_S
    while True:
        check_running(running)
        try:
            with urlopen(url):
                return
        except URLError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


if __name__ == "__main__":
    main(*(int(port) for port in sys.argv[1:] or PORTS))
