"""The audit log of proofs that were refused: at most one line a second for each network address."""

import logging
from collections.abc import Callable
from typing import Final

from megaphone.core.peers import network_of
from megaphone.errors import KeysUnavailable, TokenExpired, Unauthenticated

log = logging.getLogger("megaphone.audit")

LINE_S: Final = 1.0
"""The shortest time between two lines about the same address."""
PEERS_REMEMBERED: Final = 1_000
CODES: Final = (Unauthenticated.code, TokenExpired.code, KeysUnavailable.code)


class RefusedProofs:
    """Logs and counts the proofs that were refused."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lines: dict[str, tuple[float, int]] = {}
        """For each network of peers: when the next line may be logged, and how many refusals no
        line has reported yet."""
        # They are 0 from the start, because Prometheus would miss the first of each.
        self.counts: dict[str, int] = dict.fromkeys(CODES, 0)
        """How many proofs were refused, by the code of the error."""

    def add(self, ip: str, code: str, reason: str) -> None:
        """Count a refused proof. `reason` must not repeat anything of the proof."""
        self.counts[code] = self.counts.get(code, 0) + 1
        network, now = network_of(ip), self._clock()
        next_line_at, unreported = self._lines.pop(network, (now, 0))
        if now < next_line_at:
            self._lines[network] = (next_line_at, unreported + 1)
            return
        fields: dict[str, object] = {"peer": ip or "local", "code": code}
        if unreported:
            fields["others"] = unreported
        log.warning("refused a token: %s", reason, extra=fields)
        if len(self._lines) >= PEERS_REMEMBERED:
            del self._lines[next(iter(self._lines))]
        self._lines[network] = (now + LINE_S, 0)
