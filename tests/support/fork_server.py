"""A process that has imported the broker and its commands, and starts them by forking itself.

The imports are most of what a start costs. `tests.support.forked` is the other end. A request over
the socket, whose descriptor is the argument, is JSON: the arguments, the environment and the
working directory of a command. With it come descriptors: the standard streams of the command, and
where to write its process id, and in the end its exit code.
"""

import contextlib
import gc
import io
import json
import os
import signal
import socket
import struct
import sys
import traceback
from typing import Any

import megaphone.app
import megaphone.cli.admin
import megaphone.cli.main
import megaphone.cli.serve
import megaphone_client.client
import megaphone_client.http  # noqa: F401  # a command imports it when it calls a broker

NUMBER = struct.Struct("=i")
MAX_REQUEST = 1 << 20
COMMANDS = {"megaphone": megaphone.cli.main.main, "megactl": megaphone.cli.admin.main}


def import_the_rest() -> None:
    """Import what a command imports while it runs, and keep collections from changing what there
    is, because a forked process would have to copy that."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        megaphone.cli.main.app(["config", "show"])
    gc.collect()
    gc.freeze()


def serve(requests: socket.socket) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # so that nobody must wait for the watchers
    while True:
        request, descriptors, _, _ = socket.recv_fds(requests, MAX_REQUEST, 4)
        if not request:
            return
        if os.fork() == 0:
            requests.close()
            *streams, result = descriptors
            watch(json.loads(request), streams, result)
        for descriptor in descriptors:
            os.close(descriptor)


def watch(command: dict[str, Any], streams: list[int], result: int) -> None:
    """Run a command, and report how it ends. Never returns."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid == 0:
        os.close(result)
        take_over(streams)
        run(command)
    for descriptor in (*streams, 0, 1, 2):
        os.close(descriptor)
    os.write(result, NUMBER.pack(pid))
    _, status = os.waitpid(pid, 0)
    os.write(result, NUMBER.pack(os.waitstatus_to_exitcode(status)))
    os._exit(0)


def take_over(streams: list[int]) -> None:
    """Make these descriptors the standard streams."""
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, errors="backslashreplace", closefd=False)


def run(command: dict[str, Any]) -> None:
    """Run a command. Never returns: nothing is cleaned up, which takes long too."""
    code: object = 0
    try:
        os.chdir(command["directory"])
        os.environ.clear()
        os.environ.update(command["environment"])
        sys.argv = command["arguments"]
        COMMANDS[sys.argv[0]]()
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    import_the_rest()
    serve(socket.socket(fileno=int(sys.argv[1])))
