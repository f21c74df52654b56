"""How nodes prove to each other that they have the same secret, which itself never travels. No I/O.

    source                                                            target
      │ FindChannelsInUse of no channels: v1.{time}.{nonce}.{HMAC}      │
      │ ──────────────────────────────────────────────────────────────▶ │ admits it
      │                         v1.{id of the target}.{HMAC of nonce, id} │
      │ ◀────────────────────────────────────────────────────────────── │
      │ ForwardEvents: the same, but the HMAC is over the id too        │
      │ ──────────────────────────────────────────────────────────────▶ │ admits it, and is fed

So a source knows its target before it sends the key of an agent. A proof is good for one call of
one method, for a minute. The proof of a feed is good at one target only, and only until that starts
again, when it has another id; a question gives nothing away that would need this. Proofs and
answers have different labels under the HMAC, so that an answer cannot be sent back as a proof.
"""

import hmac
import re
import secrets
from dataclasses import dataclass, field

from megaphone.errors import LimitExceeded, Unauthenticated
from megaphone.settings import Nodes

GREETING = "/megaphone.SyncService/FindChannelsInUse"
"""The method that a source calls first: with it the two get to know each other. Its proofs are not
over the id of the target, which the source does not know then."""

CLOCKS_MAY_DIFFER_S = 60
"""How far the time of a proof may be from that of the target's clock."""
REMEMBERED_S = 2 * CLOCKS_MAY_DIFFER_S
"""How long a nonce is remembered: as long as a proof with it could be taken."""
MAX_REMEMBERED = 100_000
"""How many nonces are remembered; only calls of nodes with the secret add to them."""

PROOF = re.compile(r"v1\.([0-9]{1,15})\.([0-9a-f]{32})\.([0-9a-f]{64})", re.ASCII)
ANSWER = re.compile(r"v1\.([0-9a-f]{32})\.([0-9a-f]{64})", re.ASCII)

# Read at the source, in an answer of the target, and in the log of the target.
ASKS_FOR_A_PROOF = (
    "the target accepts agents only from nodes that prove that they have its secret: set the same"
    " `nodes.secret` on both"
)
TAKES_NO_FEEDS = (
    "the target has no secret, so it accepts no agents from other machines: set the same"
    " `nodes.secret` on both, or `nodes.open = true` on the target"
)
HAS_NOT_PROVED = (
    "the target has not proved that it has the secret of this node: set the same `nodes.secret` on"
    " both, or `nodes.open = true` on this node"
)


@dataclass(frozen=True, slots=True)
class Proof:
    """What a source shows with one call."""

    text: str = field(repr=False)
    nonce: str = field(repr=False)


class NodeSigner:
    """The source's side: proves that it has the secret, and checks that a target has it."""

    def __init__(self, secret: str) -> None:
        self._key = secret.encode()

    def prove(self, method: str, now: float, target_id: str = "") -> Proof:
        """Return a new proof for a call at the Unix time `now`.

        `target_id` is what `target_of` returned; empty for the method of the greeting.
        """
        time, nonce = str(int(now)), secrets.token_hex(16)
        mac = mac_of_call(self._key, method, time, nonce, target_id)
        return Proof(f"v1.{time}.{nonce}.{mac}", nonce)

    def target_of(self, greeting: Proof, answer: str | None) -> str | None:
        """Return the id of a target that has answered a greeting with a proof of its own.

        None when it has not proved that it has the secret.
        """
        found = ANSWER.fullmatch(answer or "")
        if found and hmac.compare_digest(
            found[2], mac_of_answer(self._key, greeting.nonce, found[1])
        ):
            return found[1]
        return None


class NodeGuard:
    """The target's side: decides which calls of other nodes are admitted.

    All are where `nodes.open` is set, and where there is no secret and only this machine can reach
    the node (`is_loopback`). Otherwise a call needs a proof; without a secret none can be given.
    """

    def __init__(self, nodes: Nodes, *, is_loopback: bool) -> None:
        chosen = (nodes.secret, nodes.previous_secret)
        self._keys = [secret.encode() for secret in chosen if secret is not None]
        self._needs_proof = not nodes.open and (bool(self._keys) or not is_loopback)
        self._seen: dict[str, float] = {}
        """Until when the nonces of admitted calls are remembered, in their order."""
        self.id = secrets.token_hex(16)

    def admit(self, method: str, proof: str | None, now: float) -> str | None:
        """Admit a call at the Unix time `now`, or refuse it.

        Returns: the proof that the caller gets in return; None when its call proved nothing.
        Raises: Unauthenticated, also for a wrong proof where none is needed; LimitExceeded.
        """
        if proof is not None and self._keys:
            return self._verified(method, proof, now)
        if self._needs_proof:
            raise Unauthenticated(ASKS_FOR_A_PROOF if self._keys else TAKES_NO_FEEDS)
        return None

    def _verified(self, method: str, proof: str, now: float) -> str:
        if (found := PROOF.fullmatch(proof)) is None:
            raise Unauthenticated("the proof of the calling node has an unknown form")
        time, nonce, mac = found.groups()
        key = self._key_of(method, time, nonce, mac)
        if abs(now - int(time)) > CLOCKS_MAY_DIFFER_S:
            raise Unauthenticated(
                f"the clocks of the two nodes differ by more than {CLOCKS_MAY_DIFFER_S} s"
            )
        self._remember(nonce, now)
        return f"v1.{self.id}.{mac_of_answer(key, nonce, self.id)}"

    def _key_of(self, method: str, time: str, nonce: str, mac: str) -> bytes:
        """Return the secret that a proof was made with. Raises: Unauthenticated."""
        target_id = "" if method == GREETING else self.id
        for key in self._keys:
            if hmac.compare_digest(mac, mac_of_call(key, method, time, nonce, target_id)):
                return key
        raise Unauthenticated(
            "the proof of the calling node is not valid for this call: is `nodes.secret` the same"
            " on both?"
        )

    def _remember(self, nonce: str, now: float) -> None:
        """Raises: Unauthenticated, when the nonce was seen before; LimitExceeded."""
        while self._seen and next(iter(self._seen.values())) < now:
            del self._seen[next(iter(self._seen))]
        if nonce in self._seen:
            raise Unauthenticated("the proof of the calling node was used before")
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
    """No part may have a line break in it."""
    return hmac.digest(key, "\n".join(parts).encode(), "sha256").hex()
