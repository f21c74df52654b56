"""Starts a broker, the back ends of both examples and their pages, until Ctrl-C: `make demo`.

Ports other than 3000, 8000 and 8001 may follow: of the broker, the chat and the jobs.
"""

import os
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

HERE = Path(__file__).parent
MEGAPHONE = Path(sys.executable).with_name("megaphone")
HOST = "127.0.0.1"
PORTS = (3000, 8000, 8001)
STARTS_WITHIN_S = 30.0


def main(broker_port: int, chat_port: int, jobs_port: int) -> None:
    broker, chat, jobs = (f"http://{HOST}:{port}" for port in (broker_port, chat_port, jobs_port))
    settings = {
        "megaphone_address": f"{HOST}:{broker_port}",
        "megaphone_grpc_address": f"{HOST}:0",
        "megaphone_cors_allow_origin": f"{chat},{jobs}",
        "megaphone_webhooks.chat.endpoint": f"{chat}/gone",
        "megaphone_webhooks_allow": HOST,
    }
    programs: list[tuple[list[str | Path], dict[str, str]]] = [
        ([MEGAPHONE, "serve"], settings),
        (
            [sys.executable, HERE / "chat" / "chat.py", str(chat_port)],
            {"MEGAPHONE_URL": broker},
        ),
        (
            [sys.executable, HERE / "jobs" / "jobs.py", str(jobs_port)],
            {"MEGAPHONE_URL": broker},
        ),
    ]
    with ExitStack() as stack:
        for command, variables in programs:
            process = subprocess.Popen(command, env=os.environ | variables)
            stack.callback(process.wait)
            stack.callback(process.terminate)
        for url in (f"{broker}/livez", chat, jobs):
            wait_for(url)
        print(f"A chat: {chat}/ (open it twice)", f"A long request: {jobs}/", sep="\n", flush=True)
        with suppress(KeyboardInterrupt):
            process.wait()


def wait_for(url: str) -> None:
    until = time.monotonic() + STARTS_WITHIN_S
    while True:
        try:
            with urlopen(url):
                return
        except URLError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


if __name__ == "__main__":
    main(*(int(port) for port in sys.argv[1:] or PORTS))
