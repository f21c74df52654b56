"""Unix sockets that only the owner of this process may use, whichever face serves there."""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

BACKLOG = 1_024
PROBE_TIMEOUT_S = 1.0


@contextmanager
def owner_only(path: str) -> Iterator[None]:
    """Within this context, and without an `await`, bind a socket to `path`.

    Only the owner of this process can connect to it. A socket that a broker left behind that was
    killed is removed before.

    Raises: OSError, when the path cannot be had, or a living broker has it.
    """
    try:
        if Path(path).is_socket():
            if is_served(path):
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
            Path(path).unlink()
        # The mode must be right from the start: between bind and chmod anyone could connect.
        earlier = os.umask(0o177)
        try:
            yield
        finally:
            os.umask(earlier)
    except OSError as error:
        raise OSError(
            error.errno,
            f"the management socket {path}: {error.strerror or error};"
            " set mng_socket_path to another path",
        ) from None


def listen_unix(path: str) -> socket.socket:
    """Listen where only the owner of this process can connect.

    Raises: OSError, when the path cannot be had, or a living broker has it.
    """
    listening = socket.socket(socket.AF_UNIX)
    try:
        with owner_only(path):
            listening.bind(path)
            listening.listen(BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening


def unlink_unix(path: str) -> None:
    with suppress(FileNotFoundError):
        Path(path).unlink()


def is_served(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(PROBE_TIMEOUT_S)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
        except OSError:
            return True
    return True


def grpc_path(path: str) -> str:
    """Return where gRPC is served beside a socket: `m.grpc.sock` beside `m.sock`."""
    return f"{path.removesuffix('.sock')}.grpc{'.sock' if path.endswith('.sock') else ''}"
