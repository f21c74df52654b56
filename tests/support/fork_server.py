"""A process that has imported the broker, and starts brokers by forking itself.

The imports are most of what a start costs. `tests.support.forked` is the other end. A request over
the socket, whose descriptor is the argument, is JSON: the arguments, the environment and the
working directory of a command. With it come descriptors: the standard error of the command, and
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
import megaphone.cli.main
import megaphone.cli.serve

NUMBER = struct.Struct("=i")
MAX_REQUEST = 1 << 20


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
        request, descriptors, _, _ = socket.recv_fds(requests, MAX_REQUEST, 2)
        if not request:
            return
        if os.fork() == 0:
            requests.close()
            watch(json.loads(request), *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def watch(command: dict[str, Any], error: int, result: int) -> None:
    """Run a command, and report how it ends. Never returns."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid == 0:
        os.close(result)
        os.dup2(error, 2)
        os.close(error)
        run(command)
    os.close(error)
    os.close(2)
    os.write(result, NUMBER.pack(pid))
    _, status = os.waitpid(pid, 0)
    os.write(result, NUMBER.pack(os.waitstatus_to_exitcode(status)))
    os._exit(0)


def run(command: dict[str, Any]) -> None:
    """Run a command of `megaphone`. Never returns: nothing is cleaned up, which takes long too."""
    code: object = 0
    try:
        os.chdir(command["directory"])
        os.environ.clear()
        os.environ.update(command["environment"])
        sys.argv = command["arguments"]
        megaphone.cli.main.main()
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    import_the_rest()
    serve(socket.socket(fileno=int(sys.argv[1])))
