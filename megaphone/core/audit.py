"""The audit log: what operators do, and a sample of what clients do who have a name."""

import logging
from typing import Final

from megaphone.core.access import Caller
from megaphone.model import short_id

audit = logging.getLogger("megaphone.audit")

SAMPLE_S: Final = 60.0
"""The shortest time between two lines about the same kind of call of a caller."""
CALLERS_REMEMBERED: Final = 1_000


class Sample:
    """Logs some calls of one kind: of each caller at most one in `SAMPLE_S`, with how many others
    there were since the line before."""

    def __init__(self, message: str) -> None:
        self._message = message
        self._callers: dict[Caller, tuple[float, int]] = {}
        """For each caller: when the next line may be logged, and how many calls have no line."""

    def add(self, caller: Caller, agent: str, channel_id: bytes, now: float) -> None:
        """Note a call that has succeeded."""
        next_at, unsaid = self._callers.get(caller, (now, 0))
        if now < next_at:
            self._callers[caller] = (next_at, unsaid + 1)
            return
        self._callers.pop(caller, None)
        if len(self._callers) >= CALLERS_REMEMBERED:
            del self._callers[next(iter(self._callers))]
        self._callers[caller] = (now + SAMPLE_S, 0)
        fields: dict[str, object] = {
            "caller": caller.name,
            "tenant": caller.tenant.name,
            "agent": agent,
            "channel": short_id(channel_id),
        }
        audit.info(self._message, extra=fields | ({"others": unsaid} if unsaid else {}))
