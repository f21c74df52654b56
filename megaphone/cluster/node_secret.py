"""How two nodes prove to each other that they have the same secret, without sending it. No I/O.

    source                                                            target
      │ FindChannelsInUse of no channels: v1.{time}.{nonce}.{HMAC}      │
      │ ──────────────────────────────────────────────────────────────▶ │ checks the proof
      │                       v1.{id of the target}.{HMAC of nonce, id} │
      │ ◀────────────────────────────────────────────────────────────── │
      │ ForwardEvents: as above, but the HMAC also covers the id        │
      │ ──────────────────────────────────────────────────────────────▶ │ checks it, and accepts

So a source knows its target before it sends the key of an agent. A proof is valid for one call of
one method, within a minute. The proof of a ForwardEvents call is valid at one target only, and
only until the target restarts, because then the target has another id. FindChannelsInUse reveals no
secret, so its proof needs no id. The HMACs of proofs and of answers have different labels, so that
nobody can send an answer back as a proof.
"""

import hmac
import re
import secrets
from dataclasses import dataclass, field

from megaphone.errors import LimitExceeded, NodeUnauthenticated
from megaphone.settings import Nodes

GREETING = "/megaphone.SyncService/FindChannelsInUse"
"""The method that a source calls first. Its proofs do not cover the id of the target, because the
source does not know the id yet."""

CLOCKS_MAY_DIFFER_S = 60
"""The largest allowed difference between the time in a proof and the clock of the target."""
REMEMBERED_S = 2 * CLOCKS_MAY_DIFFER_S
"""How long a target remembers a nonce: as long as a proof with this nonce could be valid."""
MAX_REMEMBERED = 100_000
"""How many nonces a target remembers. Only nodes that have the secret can add to them."""

PROOF = re.compile(r"v1\.([0-9]{1,15})\.([0-9a-f]{32})\.([0-9a-f]{64})", re.ASCII)
ANSWER = re.compile(r"v1\.([0-9a-f]{32})\.([0-9a-f]{64})", re.ASCII)

# Operators read these texts at the source and in the log file of the target.
ASKS_FOR_A_PROOF = (
    "the target accepts agents only from nodes that prove that they have its secret: set the same"
    " `nodes.secret` on both"
)
REFUSES_ALL = (
    "the target has no secret, so it accepts no agents from other machines: set the same"
    " `nodes.secret` on both, or `nodes.open = true` on the target"
)
HAS_NOT_PROVED = (
    "the target has not proved that it has the secret of this node: set the same `nodes.secret` on"
    " both, or `nodes.open = true` on this node"
)


@dataclass(frozen=True, slots=True)
class Proof:
    """The proof that a source sends with one call."""

    text: str = field(repr=False)
    nonce: str = field(repr=False)


class NodeSigner:
    """The source's side: proves that this node has the secret, and checks the proof of a target."""

    def __init__(self, secret: str) -> None:
        self._key = secret.encode()

    def prove(self, method: str, now: float, target_id: str = "") -> Proof:
        """Make a proof for one call of a method. `now` is the Unix time.

        `target_id` is the id from `target_of`; it is empty for the greeting.
        """
        time, nonce = str(int(now)), secrets.token_hex(16)
        mac = mac_of_call(self._key, method, time, nonce, target_id)
        return Proof(f"v1.{time}.{nonce}.{mac}", nonce)

    def target_of(self, greeting: Proof, answer: str | None) -> str | None:
        """Return the id in the answer of a target to a greeting.

        Returns None if the answer does not prove that the target has the secret.
        """
        found = ANSWER.fullmatch(answer or "")
        if found and hmac.compare_digest(
            found[2], mac_of_answer(self._key, greeting.nonce, found[1])
        ):
            return found[1]
        return None


class NodeGuard:
    """The target's side: decides which calls of other nodes are admitted.

    A call needs a proof, except in two cases: `nodes.open` is set, or the node has no secret and
    listens on loopback only (`is_loopback`). A node without a secret accepts no proof, so it
    refuses all other calls.
    """

    def __init__(self, nodes: Nodes, *, is_loopback: bool) -> None:
        chosen = (nodes.secret, nodes.previous_secret)
        self._keys = [secret.encode() for secret in chosen if secret is not None]
        self._needs_proof = not nodes.open and (bool(self._keys) or not is_loopback)
        self._seen: dict[str, float] = {}
        """The nonces of admitted calls, oldest first, each with the time at which to forget it."""
        self.id = secrets.token_hex(16)
        """The id of this node. It changes at each restart."""

    def admit(self, method: str, proof: str | None, now: float) -> str | None:
        """Admit a call, or refuse it. `now` is the Unix time.

        Returns: the answer that proves the secret to the caller; None for a call without a proof.
        Raises: Unauthenticated, also for a wrong proof when no proof is needed; LimitExceeded.
        """
        if proof is not None and self._keys:
            return self._verified(method, proof, now)
        if self._needs_proof:
            raise NodeUnauthenticated(ASKS_FOR_A_PROOF if self._keys else REFUSES_ALL)
        return None

    def _verified(self, method: str, proof: str, now: float) -> str:
        if (found := PROOF.fullmatch(proof)) is None:
            raise NodeUnauthenticated("the proof of the calling node has an unknown form")
        time, nonce, mac = found.groups()
        key = self._key_of(method, time, nonce, mac)
        if abs(now - int(time)) > CLOCKS_MAY_DIFFER_S:
            raise NodeUnauthenticated(
                f"the clocks of the two nodes differ by more than {CLOCKS_MAY_DIFFER_S} s"
            )
        self._remember(nonce, now)
        return f"v1.{self.id}.{mac_of_answer(key, nonce, self.id)}"

    def _key_of(self, method: str, time: str, nonce: str, mac: str) -> bytes:
        """Return the secret with which a proof was made. Raises: Unauthenticated."""
        target_id = "" if method == GREETING else self.id
        for key in self._keys:
            if hmac.compare_digest(mac, mac_of_call(key, method, time, nonce, target_id)):
                return key
        raise NodeUnauthenticated(
            "the proof of the calling node is not valid for this call: is `nodes.secret` the same"
            " on both?"
        )

    def _remember(self, nonce: str, now: float) -> None:
        """Remember a nonce. Raises: Unauthenticated, when it was used before; LimitExceeded."""
        while self._seen and next(iter(self._seen.values())) < now:
            del self._seen[next(iter(self._seen))]
        if nonce in self._seen:
            raise NodeUnauthenticated("the proof of the calling node was used before")
        if len(self._seen) >= MAX_REMEMBERED:
            raise LimitExceeded(
                f"other nodes call too often: at most {MAX_REMEMBERED} calls in {REMEMBERED_S} s"
            )
        self._seen[nonce] = now + REMEMBERED_S


def mac_of_call(key: bytes, method: str, time: str, nonce: str, target_id: str) -> str:
    return mac_of(key, "megaphone-node call", method, time, nonce, target_id)


def mac_of_answer(key: bytes, nonce: str, target_id: str) -> str:
    return mac_of(key, "megaphone-node answer", nonce, target_id)


def mac_of(key: bytes, *parts: str) -> str:
    """Return the HMAC of several texts. None of them may contain a line break."""
    return hmac.digest(key, "\n".join(parts).encode(), "sha256").hex()
