"""What the page for operators gets to know of a node, and what it may do there.

The page learns no address of a channel, because an address is a secret. It gets a name to show and
a key; the relay remembers which channel has the key.
"""

import hashlib
import secrets
from collections.abc import Generator, Iterator, Mapping
from threading import Lock
from typing import Any, Final
from urllib.parse import quote

import msgspec

from megaphone.cli.admin_client import call, follow
from megaphone.cli.top import name_of, short_name
from megaphone.wire.bodies import NodeView, WatchedChannel

INTERVAL_MS: Final = 1_000
ACTIONS: Final = ("dispose", "promote", "drain")
REMEMBERED: Final = 8_192
"""How many channels can be asked for by their keys: those that were shown last."""


class WrongAction(Exception):
    """An action that cannot be done. The text is for the operator."""


class Action(msgspec.Struct, forbid_unknown_fields=True):
    """What an action is about: the key of a channel, the name of an agent, or a target."""

    of: str


class Relay:
    """Stands between the page and the admin socket of a node. Any thread may call it."""

    def __init__(self, socket_path: str, *, allow_actions: bool) -> None:
        self.allows_actions = allow_actions
        self._socket_path = socket_path
        self._secret = secrets.token_bytes(16)
        self._addresses: dict[str, str] = {}
        """By key, the channels that were shown, the last one last."""
        self._lock = Lock()

    def watch(self, sort: str, limit: int) -> Generator[bytes]:
        """Yield a line of JSON for each view of the node. Raises: CallFailed."""
        route = f"/node/watch?interval_ms={INTERVAL_MS}&limit={limit}&sort={quote(sort)}"
        for line in follow(self._socket_path, "GET", route):
            yield self._shown(line)

    def show(self, key: str) -> bytes:
        """Return all that may be seen of a channel, as JSON. Raises: WrongAction; CallFailed."""
        address = self._address(key)
        route = f"/channel/{quote(address, safe='')}"
        members = msgspec.json.decode(call(self._socket_path, "GET", route), type=dict[str, Any])
        del members["address"]
        return msgspec.json.encode({"name": short_name(address), **members})

    def act(self, action: str, body: bytes) -> Iterator[bytes]:
        """Do one of ACTIONS. Returns: a line of JSON for each step, perhaps none.

        Raises: WrongAction; CallFailed.
        """
        if not self.allows_actions:
            raise WrongAction("actions are not allowed: start megaphone ui with --allow-actions")
        try:
            of = msgspec.json.decode(body, type=Action).of
        except msgspec.DecodeError as error:
            raise WrongAction(f"the request is not as it must be: {error}") from None
        match action:
            case "dispose":
                return self._dispose(of)
            case "promote":
                return self._call("POST", "/vagent/promote", {"name": of})
        return follow(self._socket_path, "POST", "/node/drain", {"target": of})

    def _dispose(self, key: str) -> Iterator[bytes]:
        return self._call("DELETE", f"/channel/{quote(self._address(key), safe='')}")

    def _address(self, key: str) -> str:
        """Return the address of a channel. Raises: WrongAction."""
        address = self._addresses.get(key)
        if address is None:
            raise WrongAction("this channel was not shown lately")
        return address

    def _call(self, method: str, route: str, body: object = None) -> Iterator[bytes]:
        call(self._socket_path, method, route, body)
        return iter(())

    def _shown(self, line: bytes) -> bytes:
        view = msgspec.json.decode(line, type=NodeView)
        shown = msgspec.to_builtins(view)
        shown["channels"] = [self._without_address(one) for one in view.channels]
        self._remember({self._key(one.address): one.address for one in view.channels})
        return msgspec.json.encode(shown) + b"\n"

    def _without_address(self, channel: WatchedChannel) -> dict[str, Any]:
        members = msgspec.to_builtins(channel)
        del members["address"]
        return {"key": self._key(channel.address), "name": name_of(channel), **members}

    def _key(self, address: str) -> str:
        return hashlib.blake2s(address.encode(), key=self._secret, digest_size=12).hexdigest()

    def _remember(self, addresses: Mapping[str, str]) -> None:
        with self._lock:
            kept = {key: self._addresses[key] for key in self._addresses if key not in addresses}
            kept.update(addresses)
            self._addresses = dict(list(kept.items())[-REMEMBERED:])
