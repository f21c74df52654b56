"""The sockets on which both faces listen: TCP, and Unix sockets for the owner of this process.

Workers share a port by SO_REUSEPORT: each has a socket of its own, and the kernel chooses one for
each new connection, by a hash of its two addresses.
"""

import ctypes
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
EVERY_HOST = ("0.0.0.0", "::")  # noqa: S104
EVERY_ADDRESS = "::"
PROBE_TIMEOUT_S = 1.0
SO_ATTACH_FILTER = 26
NO_SYN = (
    (0x30, 0, 0, 13),  # load the flags of TCP
    (0x54, 0, 0, 0x12),  # of them SYN and ACK
    (0x15, 0, 1, 0x02),  # if that is SYN alone,
    (0x06, 0, 0, 0),  # drop the packet,
    (0x06, 0, 0, 0xFFFF_FFFF),  # else keep it
)
"""A filter of the kernel (classic BPF) for a listening socket: no new connection begins."""
PEER = struct.Struct("3i")
"""The id, the user and the group of the process at the other end, as Linux reports them."""


def listen_tcp(endpoint: Endpoint) -> socket.socket:
    """Return a socket that listens on TCP; port 0 takes a free port.

    Raises: OSError, if the endpoint is in use or does not belong to this machine.
    """
    family, host = bound_as(endpoint)
    listening = socket.create_server(
        (host, endpoint.port),
        family=family,
        backlog=BACKLOG,
        dualstack_ipv6=host == EVERY_ADDRESS,
    )
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
    return listening


def bound_as(endpoint: Endpoint) -> tuple[socket.AddressFamily, str]:
    """Return the family and the IP address on which a node listens, the same for HTTP and gRPC.

    gRPC cannot listen on all addresses of one family only, so 0.0.0.0 and :: both stand for all of
    both. Of a name with several addresses the first counts, and IPv4 comes first.

    Raises: OSError, if the name has no address.
    """
    if endpoint.host in EVERY_HOST and socket.has_dualstack_ipv6():
        return socket.AF_INET6, EVERY_ADDRESS
    try:
        found = socket.getaddrinfo(
            endpoint.host, endpoint.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise OSError(error.errno, f"{endpoint.host}: {error.strerror}") from None
    family, *_, address = min(found, key=lambda one: one[0] != socket.AF_INET)
    return family, str(address[0])


def reserve(endpoint: Endpoint) -> socket.socket:
    """Return a socket that has a port and does not listen; port 0 takes a free port.

    Until it is closed, only sockets of `bind_shared` and of a gRPC server that shares its port can
    use the port, and only if they belong to the same user.

    Raises: OSError, if the endpoint is in use or does not belong to this machine.
    """
    family, host = bound_as(endpoint)
    reserved = socket.socket(family)
    try:
        set_families(reserved, host)
        # For connections of an earlier process, which the kernel still remembers.
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind((host, endpoint.port))
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        # Not before, because the port may not be one that others share already.
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except OSError as error:
        reserved.close()
        raise OSError(
            error.errno, f"cannot listen on {endpoint}: {error.strerror or error}"
        ) from None
    return reserved


def bind_shared(endpoint: Endpoint) -> socket.socket:
    """Return a socket that shares a port with others, and does not listen yet.

    Raises: OSError, if the endpoint is in use or does not belong to this machine.
    """
    family, host = bound_as(endpoint)
    bound = socket.socket(family)
    try:
        set_families(bound, host)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        bound.bind((host, endpoint.port))
    except OSError:
        bound.close()
        raise
    return bound


def set_families(bound: socket.socket, host: str) -> None:
    """Let a socket for all addresses accept IPv4 and IPv6, and another one only its own."""
    if bound.family == socket.AF_INET6:
        bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(host != EVERY_ADDRESS))


def own_sockets(port: int) -> Iterator[socket.socket]:
    """Yield the TCP sockets of this process with a local port, those of libraries too.

    They are duplicates, and closed as soon as the next one is asked for.
    """
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            duplicate = os.dup(int(descriptor.name))
        except OSError:  # it is closed by now
            continue
        try:
            found = socket.socket(fileno=duplicate)
        except OSError:
            os.close(duplicate)
            continue
        with found:
            if found.family != socket.AF_UNIX and found.getsockname()[1:2] == (port,):
                yield found


def listens(found: socket.socket) -> bool:
    return bool(found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def begin_no_connections(port: int) -> None:
    """Let the kernel ignore new connections to a port of this process. A client tries again after
    a second, and can then reach another process, if this one does not listen any more."""
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in NO_SYN))
    program = struct.pack("HL", len(NO_SYN), ctypes.addressof(code))
    for found in own_sockets(port):
        if listens(found):
            found.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


def end_listening(port: int) -> None:
    """Make all sockets of this process with a port stop listening, those of libraries too."""
    for found in own_sockets(port):
        if listens(found):
            found.shutdown(socket.SHUT_RDWR)


def open_connections(port: int) -> int:
    """Return how many connections clients have to a port of this process."""
    return sum(is_connected(found) for found in own_sockets(port))


def is_connected(found: socket.socket) -> bool:
    try:
        found.getpeername()
    except OSError:
        return False
    return True


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


def check_unused(path: str) -> None:
    """Check that a broker can listen at a path, and remove what a killed broker has left there.

    Raises: OSError, if not.
    """
    with owner_only(path), socket.socket(socket.AF_UNIX) as probe:
        probe.bind(path)
        Path(path).unlink()


def passing(path: str) -> str:
    """Return the path at which a worker binds a socket before it moves it to `path`."""
    return f"{path}.{os.getpid()}"


def move_unix(path: str, to: str) -> int:
    """Move a socket, and replace the one that is there. Returns: its inode."""
    Path(path).replace(to)
    return os.lstat(to).st_ino


def unlink_unix(path: str, inode: int | None = None) -> None:
    """Remove a socket, if there is one. With `inode`, remove only that one."""
    with suppress(FileNotFoundError):
        if inode is None or os.lstat(path).st_ino == inode:
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
