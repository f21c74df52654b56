"""Where the broker is, as its URL says."""

import os
from base64 import b64encode
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote, urlsplit

VARIABLE: Final = "MEGAPHONE_URL"
DEFAULT: Final = "http://localhost:3000"
PORTS: Final = {"http": 80, "https": 443, "grpc": 3001, "grpcs": 3001}
ALLOWED: Final = "http://host:3000, https://host/prefix, grpc://host:3001 or grpcs://host:3001"


@dataclass(frozen=True, slots=True)
class Target:
    """A broker, or a proxy before it."""

    is_grpc: bool
    is_encrypted: bool
    host: str
    port: int
    prefix: str
    """What the paths of all HTTP requests begin with: nothing, or a slash and more."""
    authorization: str | None = field(repr=False)
    """The value of the header `Authorization`, if the URL has a user and a password."""

    @property
    def endpoint(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse_url(url: str | None) -> Target:
    """Return the target of a URL; without one, that of `MEGAPHONE_URL` or `http://localhost:3000`.

    Raises: ValueError. Its text does not repeat the URL, which may contain a password.
    """
    try:
        parts = urlsplit(url or os.environ.get(VARIABLE) or DEFAULT)
    except ValueError:
        raise ValueError(f"the URL of a broker looks like {ALLOWED}") from None
    if parts.scheme not in PORTS or not parts.hostname:
        raise ValueError(f"the URL of a broker looks like {ALLOWED}")
    try:
        parts.hostname.encode("idna")  # as it is looked up
    except UnicodeError:
        raise ValueError("the host in the URL of a broker is no name of a host") from None
    is_grpc = parts.scheme.startswith("grpc")
    prefix = parts.path.rstrip("/")
    if parts.query or parts.fragment or (is_grpc and prefix):
        allowed = "a host and a port" if is_grpc else "a host, a port and a path"
        raise ValueError(f"the URL of a broker has {allowed}, and nothing behind them")
    try:
        port = parts.port or PORTS[parts.scheme]
    except ValueError:
        raise ValueError("the port in the URL of a broker is a number from 1 to 65535") from None
    authorization = None
    if parts.username is not None:
        user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = f"Basic {b64encode(user.encode()).decode()}"
    return Target(is_grpc, parts.scheme.endswith("s"), parts.hostname, port, prefix, authorization)
