"""The HTTP server of the page for operators, on 127.0.0.1.

Other users of the machine and pages of other sites can reach it, so it answers nothing without a
secret, which only the printed link has:

- The link names a random folder and a random token. With the token the page comes with a cookie,
  and every other request needs that cookie. Cookies know no ports, but a server on another port of
  this machine gets this one only for a path in that folder, whose name it does not know.
- The host of each request must be this machine, so that no name of another site stands for it (DNS
  rebinding), and a request that says which origin it has must have that of the page.

Threads serve the requests: there are few, and the client of the admin socket blocks.
"""

import hashlib
import re
import secrets
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, urlsplit

import msgspec

from megaphone.cli.admin_client import CallFailed
from megaphone.cli.top import Sort
from megaphone.cli.ui_relay import ACTIONS, Relay, WrongAction

PAGE: Final = Path(__file__).with_name("ui.html")
HOST: Final = "127.0.0.1"
THIS_MACHINE: Final = re.compile(r"(?:127\.0\.0\.1|localhost|\[::1\])(?::[0-9]{1,5})?")
"""The hosts of requests that are answered. Any port will do, because `ssh -L` may choose one."""
COOKIE: Final = "megaphone-ui"
INLINE: Final = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)
MOST_BODY_BYTES: Final = 4_096
MOST_THREADS: Final = 100
SAFE: Final = {
    "Cache-Control": "no-store",
    "Connection": "close",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
IDLE_S: Final = 15.0
"""How long the server waits for a client that sends or takes nothing."""
CHANNELS: Final = 200
FILTERED_CHANNELS: Final = 1_000
"""How many channels the page gets if it filters them. The broker shows no more."""


class Refused(Exception):
    """A request gets an error. The text is for the user."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class UiServer(ThreadingHTTPServer):
    """Serves the page and what it asks for, for whoever has the link."""

    daemon_threads = True

    def __init__(self, port: int, relay: Relay) -> None:
        """Raises: OSError, if the port is not free."""
        super().__init__((HOST, port), Handler)
        self.relay = relay
        self.token = secrets.token_urlsafe(32)
        self.folder = f"/{secrets.token_hex(8)}/"
        text = PAGE.read_text()
        self.page_headers = page_headers(text)
        self.page = text.replace("{actions}", "yes" if relay.allows_actions else "no").encode()

    @property
    def link(self) -> str:
        return f"http://{HOST}:{self.server_port}{self.folder}?token={self.token}"

    def verify_request(self, request: object, client_address: object) -> bool:
        """Drop a connection if there are too many."""
        return threading.active_count() < MOST_THREADS

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of a client that left: a traceback would be all that the operator sees."""


def page_headers(page: str) -> dict[str, str]:
    """Return the headers of the page. Its policy allows the script and the style that are in it,
    and nothing else."""
    allowed = {kind: sha256(text) for kind, text in INLINE.findall(page)}
    policy = (
        f"default-src 'none'; script-src '{allowed['script']}'; style-src '{allowed['style']}';"
        " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none';"
        " require-trusted-types-for 'script'"
    )
    return {"Content-Security-Policy": policy, "Cross-Origin-Opener-Policy": "same-origin"}


def sha256(text: str) -> str:
    return "sha256-" + b64encode(hashlib.sha256(text.encode()).digest()).decode()


class Handler(BaseHTTPRequestHandler):
    """Answers a request. Each has a connection of its own."""

    server: UiServer
    timeout = IDLE_S

    def do_GET(self) -> None:
        self._answer({"": self._page, "watch": self._watch, "channel": self._channel})

    def do_POST(self) -> None:
        self._answer({name: partial(self._act, name) for name in ACTIONS})

    def version_string(self) -> str:
        return "megaphone"

    def log_message(self, *line: object) -> None:
        """Log nothing, because a line would have the token."""

    def _answer(self, known: Mapping[str, Callable[[], None]]) -> None:
        with suppress(OSError):  # the client has gone
            try:
                name = self._checked_name()
                if name not in known:
                    raise Refused(404, "there is no such page")
                known[name]()
            except Refused as refused:
                self._send(refused.status, "text/plain", str(refused).encode())
            except CallFailed as error:
                self._send(502, "text/plain", str(error).encode())

    def _checked_name(self) -> str:
        """Return what is asked for in the folder. Raises: Refused."""
        hosts, origin = self.headers.get_all("Host", []), self.headers.get("Origin")
        if len(hosts) != 1 or THIS_MACHINE.fullmatch(hosts[0]) is None:
            raise Refused(403, "the host of the request must be this machine")
        needs_origin = self.command == "POST"
        if origin != f"http://{hosts[0]}" and (needs_origin or origin is not None):
            raise Refused(403, "the origin of the request must be the page")
        folder = self.server.folder
        path = urlsplit(self.path).path
        if not path.startswith(folder) or not self._has_secret():
            raise Refused(403, "open the link that megaphone ui has printed")
        return path.removeprefix(folder)

    def _has_secret(self) -> bool:
        cookies = ";".join(self.headers.get_all("Cookie", [])).split(";")
        offered = [one.strip().removeprefix(f"{COOKIE}=") for one in cookies] + self._query("token")
        token = self.server.token.encode()
        return any(secrets.compare_digest(one.encode(), token) for one in offered)

    def _query(self, name: str) -> list[str]:
        return parse_qs(urlsplit(self.path).query).get(name, [])

    def _page(self) -> None:
        cookie = (
            f"{COOKIE}={self.server.token}; HttpOnly; SameSite=Strict; Path={self.server.folder}"
        )
        headers = self.server.page_headers | {"Set-Cookie": cookie}
        self._send(200, "text/html", self.server.page, headers)

    def _watch(self) -> None:
        sort = (self._query("sort") or [Sort.DEPTH])[0]
        limit = FILTERED_CHANNELS if self._query("filtered") else CHANNELS
        with closing(self.server.relay.watch(sort, limit)) as lines:
            self._stream(lines)

    def _channel(self) -> None:
        try:
            shown = self.server.relay.show("".join(self._query("key")))
        except WrongAction as error:
            raise Refused(404, str(error)) from None
        self._send(200, "application/json", shown)

    def _act(self, action: str) -> None:
        try:
            steps = self.server.relay.act(action, self._body())
        except WrongAction as error:
            raise Refused(400, str(error)) from None
        try:
            self._stream(steps)
        except OSError:
            # The page has gone. The node drains only as long as somebody follows the steps.
            for _ in steps:
                pass

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MOST_BODY_BYTES:
            raise Refused(400, f"the body must have a length, of at most {MOST_BODY_BYTES} bytes")
        if self.headers.get_content_type() != "application/json":
            raise Refused(400, "the body must be application/json")
        return self.rfile.read(int(length))

    def _stream(self, lines: Iterator[bytes]) -> None:
        """Answer with each line when it comes, and with an error after the first as the last line.

        Raises: CallFailed, if there was no line yet.
        """
        first = next(lines, b"")
        self._start(200, "application/x-ndjson", {})
        self.wfile.write(first)
        try:
            for line in lines:
                self.wfile.write(line)
        except CallFailed as error:
            self.wfile.write(msgspec.json.encode({"failed": str(error)}) + b"\n")

    def _send(
        self, status: int, kind: str, body: bytes, headers: dict[str, str] | None = None
    ) -> None:
        self._start(status, kind, (headers or {}) | {"Content-Length": str(len(body))})
        self.wfile.write(body)

    def _start(self, status: int, kind: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        for name, value in (SAFE | headers).items():
            self.send_header(name, value)
        self.end_headers()
