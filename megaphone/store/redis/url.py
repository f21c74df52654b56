"""Where the shared store is: the URL in the settings.

    redis://[[user]:password@]host[:6379][/database]
    unix://[[user]:password@]/path/of/socket[?db=1]
    redis+sentinel://[[user]:password@]host[:26379][,host…]/service[/database]
    redis+cluster://[[user]:password@]host[:6379][,host…]

`rediss` instead of `redis` means TLS. Options follow after `?`, see `OPTIONS`. User and password
are percent-encoded. A password can be anything, and a user may have forgotten to encode it, so no
text about a URL quotes any part of it that could be one.
"""

import re
import ssl
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Self
from urllib.parse import parse_qsl, unquote

from megaphone.model import Endpoint
from megaphone.store.errors import UnusableStore

PORT = 6379
SENTINEL_PORT = 26379
MAX_DATABASE = 1_000_000

FILE_OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
SENTINEL_OPTIONS = ("sentinel_username", "sentinel_password")
OPTIONS = ("db", *FILE_OPTIONS, *SENTINEL_OPTIONS)
"""The options of a URL. `db` and the files have the names that redis-py has for them."""

_HOST = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?")


class Topology(Enum):
    """How the servers of a store belong together, and so how to find the one to talk to."""

    SINGLE = "single"
    SENTINEL = "sentinel"
    """Sentinels know which server is the master."""
    CLUSTER = "cluster"


SCHEMES = {
    "redis": (Topology.SINGLE, False),
    "rediss": (Topology.SINGLE, True),
    "unix": (Topology.SINGLE, False),
    "redis+sentinel": (Topology.SENTINEL, False),
    "rediss+sentinel": (Topology.SENTINEL, True),
    "redis+cluster": (Topology.CLUSTER, False),
    "rediss+cluster": (Topology.CLUSTER, True),
}


@dataclass(frozen=True, slots=True)
class StoreUrl:
    """What a URL says. Its text and its repr have no password."""

    topology: Topology
    endpoints: tuple[Endpoint, ...] = ()
    """The server; or the Sentinels; or some servers of the cluster. Empty for a unix socket."""
    socket_path: str | None = None
    service: str | None = None
    """The name that the Sentinels have for the master."""
    database: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    is_tls: bool = False
    ca_file: str | None = None
    """Certificates of the authorities to trust; None for those of the system."""
    certificate_file: str | None = None
    key_file: str | None = field(default=None, repr=False)
    sentinel_username: str | None = None
    sentinel_password: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a URL.

        Raises: ValueError, with a message for the user that quotes nothing secret.
        """
        scheme, separator, rest = text.partition("://")
        if not separator or scheme not in SCHEMES:
            raise ValueError(f"a store is the URL of one of {', '.join(SCHEMES)}")
        topology, is_tls = SCHEMES[scheme]
        if "#" in rest:
            raise ValueError("the URL of a store has no #; in a password write %23")
        location, _, query = rest.partition("?")
        userinfo, has_userinfo, location = location.rpartition("@")
        username, password = _credentials(userinfo) if has_userinfo else (None, None)
        options = _options(query, topology, is_tls=is_tls)
        database = options.get("db")
        found = cls(
            topology,
            username=username,
            password=password,
            is_tls=is_tls,
            ca_file=options.get("ssl_ca_certs"),
            certificate_file=options.get("ssl_certfile"),
            key_file=options.get("ssl_keyfile"),
            sentinel_username=options.get("sentinel_username"),
            sentinel_password=options.get("sentinel_password"),
        )
        if scheme == "unix":
            if not location.startswith("/"):
                raise ValueError("the URL of a unix socket is unix:///path/of/socket")
            found = replace(found, socket_path=unquote(location))
        else:
            hosts, _, path = location.partition("/")
            service, of_path = _read_path(path, topology)
            if of_path and database is not None:
                raise ValueError("the database is in the path and in ?db= too: keep one of them")
            database = of_path or database
            default = SENTINEL_PORT if topology is Topology.SENTINEL else PORT
            found = replace(found, service=service, endpoints=_endpoints(hosts, default))
        if topology is Topology.SINGLE and len(found.endpoints) > 1:
            raise ValueError(
                f"{scheme}:// names one host; several are for redis+sentinel and redis+cluster"
            )
        return replace(found, database=_database(database)) if database else found

    def with_password(self, password: str) -> Self:
        """Return the same URL with another password, for one that is kept elsewhere."""
        return replace(self, password=password)

    @classmethod
    def of_settings(cls, text: str, password_file: str | None) -> Self:
        """Read a URL whose password may be in a file: the first line of it.

        Raises: UnusableStore, with a message for the user that quotes nothing secret.
        """
        try:
            url = cls.parse(text)
        except ValueError as error:
            raise UnusableStore(f"store: {error}") from None
        if password_file is None:
            return url
        if url.password is not None:
            raise UnusableStore("store has a password, and store_password_file too: keep one")
        try:
            password = Path(password_file).read_text(encoding="utf-8").partition("\n")[0]
        except OSError as error:
            raise UnusableStore(f"store_password_file: {error.strerror}") from None
        except ValueError:
            raise UnusableStore("store_password_file: is not text in UTF-8") from None
        if not password.strip():
            raise UnusableStore("store_password_file: its first line is empty")
        return url.with_password(password.rstrip("\r"))

    def make_tls(self) -> ssl.SSLContext | None:
        """Return what connections need for TLS; None if they have none. Reads the files.

        Raises: ValueError, with a message for the user, if a file cannot be used.
        """
        if not self.is_tls:
            return None
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
        except ssl.SSLError:
            raise ValueError("ssl_ca_certs: holds no certificate") from None
        except OSError as error:
            raise ValueError(f"ssl_ca_certs: {error.strerror}") from None
        if self.certificate_file is not None:
            try:
                # A password would be asked for on the terminal; an empty one fails instead.
                context.load_cert_chain(self.certificate_file, self.key_file, password=lambda: "")
            except ssl.SSLError:
                raise ValueError(
                    "ssl_certfile, ssl_keyfile: hold no certificate with its key, not encrypted"
                ) from None
            except OSError as error:
                raise ValueError(f"ssl_certfile, ssl_keyfile: {error.strerror}") from None
        return context

    def __str__(self) -> str:
        """Return the URL without user, password and options."""
        if self.socket_path is not None:
            return f"unix://{self.socket_path}" + (f"?db={self.database}" if self.database else "")
        scheme = next(
            scheme for scheme, kind in SCHEMES.items() if kind == (self.topology, self.is_tls)
        )
        path = "".join(f"/{part}" for part in (self.service, self.database or None) if part)
        return f"{scheme}://{','.join(map(str, self.endpoints))}{path}"


def _credentials(userinfo: str) -> tuple[str | None, str | None]:
    username, _, password = userinfo.partition(":")
    return unquote(username) or None, unquote(password) or None


def _options(query: str, topology: Topology, *, is_tls: bool) -> dict[str, str]:
    """Return the options by the names that they have in the URL."""
    options: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in OPTIONS:
            # Not quoted: behind a ? in a password that is not encoded stands the rest of it.
            raise ValueError(
                f"behind the ? is an unknown option; known are {', '.join(OPTIONS)}"
                " (in a password write %3F for ?)"
            )
        if not value or name in options:
            raise ValueError(f"the option {name} needs one value")
        options[name] = value
    if not is_tls and any(name in options for name in FILE_OPTIONS):
        raise ValueError("options that begin with ssl_ need rediss instead of redis")
    if "ssl_keyfile" in options and "ssl_certfile" not in options:
        raise ValueError("ssl_keyfile needs ssl_certfile too")
    if topology is not Topology.SENTINEL and any(name in options for name in SENTINEL_OPTIONS):
        raise ValueError("options that begin with sentinel_ need redis+sentinel instead of redis")
    return options


def _read_path(path: str, topology: Topology) -> tuple[str | None, str]:
    """Return the service that a path names, and the database that it names."""
    if topology is Topology.CLUSTER:
        if path:
            raise ValueError("a cluster has one database, so its URL has no path")
        return None, ""
    if topology is Topology.SINGLE:
        return None, path
    service, _, database = path.partition("/")
    if not re.fullmatch(r"[A-Za-z0-9._-]+", service):
        raise ValueError("redis+sentinel://host:26379,host:26379/SERVICE needs the service's name")
    return service, database


def _database(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,7}", text) or int(text) > MAX_DATABASE:
        raise ValueError("the database is a number, such as 0 in redis://host:6379/0")
    return int(text)


def _endpoints(hosts: str, default_port: int) -> tuple[Endpoint, ...]:
    endpoints = []
    for host in hosts.split(","):
        found = _HOST.fullmatch(host)
        if found is None or int(found["port"] or default_port) not in range(1, 65_536):
            raise ValueError(
                "the URL needs a host and may have a port, such as redis://host:6379"
                " (in a password write %40 for @, %2F for /, %3A for :)"
            )
        endpoints.append(Endpoint(found["host"].strip("[]"), int(found["port"] or default_port)))
    return tuple(endpoints)
