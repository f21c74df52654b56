"""Callers who are known by the certificates of their connections, which TLS has checked."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple, final
from weakref import WeakKeyDictionary

from megaphone.core.access import Caller, Grant, Names
from megaphone.core.tenants import Tenant, Tenants
from megaphone.model import Action
from megaphone.settings import ClientCertificates

REMEMBERED: Final = 10_000
"""How many callers are found by the names in their certificates without comparing patterns."""


class Match(NamedTuple):
    """The entry of the settings to which a certificate belongs."""

    entry: str
    name: str
    """The name in the certificate that the entry has."""


@final
class CertificateCallers:
    """The callers with certificates that the settings know."""

    def __init__(self, tenants: Tenants) -> None:
        self._tenants = tenants
        self._entries: Mapping[str, ClientCertificates] = {}
        self._required: frozenset[Action] = frozenset()
        self._found: dict[Names, Caller | None] = {}
        """By the names in a certificate. The one that was looked for first is dropped first."""
        self._callers: WeakKeyDictionary[Caller, tuple[Names, str]] = WeakKeyDictionary()
        """Of each caller: the names in its certificate, and its entry."""

    def take(self, entries: Mapping[str, ClientCertificates], required: Iterable[Action]) -> None:
        """Let new settings take effect, also for calls and reads that are open."""
        self._entries, self._required = entries, frozenset(required)
        self._found.clear()
        for caller, (names, entry) in list(self._callers.items()):
            match = self._match(names)
            if match is None or match.entry != entry or caller.tenant is not self._tenant(entry):
                caller.revoke()
            else:
                caller.change(self._grants(entry), self._required)

    def of(self, names: Names) -> Caller | None:
        """Return the caller whose certificate has these names; None if the settings know none of
        them."""
        if names in self._found:
            return self._found[names]
        if len(self._found) >= REMEMBERED:
            del self._found[next(iter(self._found))]
        match = self._match(names)
        self._found[names] = caller = None if match is None else self._new(match, names)
        return caller

    def _new(self, match: Match, names: Names) -> Caller:
        caller = Caller(
            f"certificate {match.entry}: {match.name}",
            self._tenant(match.entry),
            self._grants(match.entry),
            required=self._required,
        )
        self._callers[caller] = names, match.entry
        return caller

    def _tenant(self, entry: str) -> Tenant:
        return self._tenants.named(self._entries[entry].tenant)

    def _grants(self, entry: str) -> Sequence[Grant]:
        found = self._entries[entry]
        return (Grant(frozenset(found.actions), found.streams),)

    def _match(self, names: Names) -> Match | None:
        """Return the entry that fits best: one with the whole name comes before one with a pattern,
        and a longer pattern before a shorter one. So the order of the settings does not matter."""
        best: tuple[int, Match] | None = None
        for name in map(folded, names):
            for entry, certificates in self._entries.items():
                for pattern in certificates.names:
                    length = fit(name, folded(pattern))
                    if length is not None and (best is None or length > best[0]):
                        best = length, Match(entry, name)
        return None if best is None else best[1]


def fit(name: str, pattern: str) -> int | None:
    """Return how well a pattern fits a name: the number of letters that it fixes; None if it does
    not fit."""
    if not pattern.endswith("*"):
        return len(name) + 1 if name == pattern else None
    return len(pattern) - 1 if name.startswith(pattern[:-1]) else None


def folded(name: str) -> str:
    """Return a name in the form in which names are compared. Case does not matter in DNS names, but
    it does in URIs."""
    return name if "://" in name else name.lower()
