"""Callers who are found by their proofs, within bounds."""

from typing import TYPE_CHECKING, Final, final

from megaphone.core.access import Caller

if TYPE_CHECKING:
    from collections.abc import Callable

MOST: Final = 10_000
"""How many callers are remembered. The one that was added first is dropped first."""
MOST_CHARACTERS: Final = 16_777_216
"""How many characters the proofs of all of them may have."""


@final
class RememberedCallers:
    """The callers who were admitted, by their proofs."""

    def __init__(self) -> None:
        self._callers: dict[str, Caller] = {}
        self._characters = 0
        self.get: Final[Callable[[str], Caller | None]] = self._callers.get
        """Returns the caller with a proof. It is asked for each call."""

    def __len__(self) -> int:
        return len(self._callers)

    def add(self, proof: str, caller: Caller) -> None:
        self._drop(proof)
        self._callers[proof] = caller
        self._characters += len(proof)
        while len(self._callers) > MOST or self._characters > MOST_CHARACTERS:
            self._drop(next(iter(self._callers)))

    def drop_revoked(self) -> None:
        for proof in [proof for proof, caller in self._callers.items() if caller.is_revoked]:
            self._drop(proof)

    def clear(self) -> None:
        self._callers.clear()
        self._characters = 0

    def _drop(self, proof: str) -> None:
        if self._callers.pop(proof, None) is not None:
            self._characters -= len(proof)
