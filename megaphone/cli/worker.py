"""A worker: what the supervisor of `megaphone serve --workers` starts. People do not."""

import asyncio
import gc
import socket
import sys

from megaphone.cli.output import open_standard_streams


def main(connection: socket.socket) -> int:
    """Serve as the supervisor at the other end of this connection says. Returns: the exit code."""
    gc.disable()  # as in `megaphone.cli.main`
    from megaphone.app import serve_as_worker
    from megaphone.cli.serve import new_event_loop
    from megaphone.errors import StoreUnavailable
    from megaphone.observe.logs import logging_to_stderr
    from megaphone.process import descriptors
    from megaphone.process.garbage import Freezer
    from megaphone.process.memory import allowed_bytes, return_freed_memory
    from megaphone.store.errors import UnusableStore
    from megaphone.workers.worker import Worker

    gc.enable()
    try:
        worker = Worker(connection)
    except (EOFError, ConnectionError):
        return 1
    return_freed_memory()
    descriptors.raise_limit()
    with (
        Freezer(allowed_bytes(worker.settings.workers)),
        logging_to_stderr(worker.settings.log_format, worker.settings.log_level) as lines,
        asyncio.Runner(loop_factory=new_event_loop) as runner,
    ):
        try:
            runner.run(serve_as_worker(worker, lines))
        except (OSError, StoreUnavailable, UnusableStore) as error:
            worker.report_failure(str(error))
            return 1
    return 0


if __name__ == "__main__":
    open_standard_streams()
    sys.exit(main(socket.socket(fileno=int(sys.argv[1]))))
