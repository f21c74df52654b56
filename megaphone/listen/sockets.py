"""The sockets on which both faces listen: TCP, and Unix sockets for the owner of this process."""

import errno
import os
import pwd
import socket
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from megaphone.model import Endpoint

BACKLOG = 1_024
RECEIVE_BUFFER_BYTES = 32_768
"""The size of the kernel's receive buffer for each connection; the kernel doubles it. The event
loop reads the whole buffer at once, before a handler can refuse it. With the kernel's default,
thousands of connections could fill hundreds of megabytes."""
PROBE_TIMEOUT_S = 1.0
PEER = struct.Struct("3i")
"""The id, the user and the group of the process at the other end, as Linux reports them."""


def listen_tcp(endpoint: Endpoint) -> socket.socket:
    """Return a socket that listens on TCP; port 0 takes a free port.

    Raises: OSError, if the endpoint is in use or does not belong to this machine.
    """
    family = socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET
    address = (endpoint.host, endpoint.port)
    listening = socket.create_server(address, family=family, backlog=BACKLOG)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
    return listening


@contextmanager
def owner_only(path: str) -> Iterator[None]:
    """Return a context in which the caller may bind a socket to `path`.

    Only the owner of this process can connect to that socket. The caller must not `await` within
    the context, because it changes the umask of the whole process. If a killed broker has left a
    socket at the path, the context removes it first.

    Raises: OSError, if the path cannot be used, if another broker serves there, or if another user
        has put a socket into a folder where everybody may write.
    """
    try:
        check_owner(path, os.geteuid())
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
            f"the admin socket {path}: {error.strerror or error};"
            " set mng_socket_path to another path",
        ) from None


def listen_unix(path: str) -> socket.socket:
    """Return a socket that listens at a path, and that only the owner of this process can use.

    Raises: OSError, if the path cannot be used, or another broker serves there.
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


class ForeignSocket(OSError):
    """A socket belongs to another user, and is in a folder where everybody may write."""

    def __init__(self, owner: int) -> None:
        reason = f"it belongs to {user_name(owner)}, and everybody may put a socket there"
        super().__init__(errno.EPERM, reason)


def check_owner(path: str, *trusted: int) -> None:
    """Check that the socket at `path` belongs to a trusted user.

    The check is only for a folder in which everybody may write, such as /tmp. There any user may
    have put a socket at the path first, to imitate a broker or the socket of a killed broker. In
    other folders the call does nothing.

    Raises: ForeignSocket.
    """
    try:
        owner = os.lstat(path).st_uid
    except FileNotFoundError:
        return
    if owner not in trusted and is_world_writable(path):
        raise ForeignSocket(owner)


def check_peer(connected: socket.socket, path: str, *trusted: int) -> None:
    """Check that the process that listens at `path` belongs to a trusted user.

    The socket may have been replaced after `check_owner` saw it.

    Raises: ForeignSocket.
    """
    if not hasattr(socket, "SO_PEERCRED") or not is_world_writable(path):
        return
    credentials = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER.size)
    _, owner, _ = PEER.unpack(credentials)
    if owner not in trusted:
        raise ForeignSocket(owner)


def is_world_writable(path: str) -> bool:
    """Return whether everybody may write in the folder of a path."""
    return bool(Path(path).absolute().parent.stat().st_mode & stat.S_IWOTH)


def user_name(number: int) -> str:
    try:
        return f"user {pwd.getpwuid(number).pw_name}"
    except KeyError:
        return f"user {number}"


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
    """Return the path of the gRPC socket beside an HTTP socket: `m.grpc.sock` beside `m.sock`."""
    return f"{path.removesuffix('.sock')}.grpc{'.sock' if path.endswith('.sock') else ''}"
