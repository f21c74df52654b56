"""The doorkeeper: finds the caller who has a proof, and remembers it.

A proof is verified once. After that the caller is found by the text of the header, which costs a
look-up in a dictionary. Only one text is remembered for each token, because the same token can be
sent with many: the name of the scheme in other letters, and more spaces.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple
from weakref import WeakSet

from megaphone.access.audit import RefusedProofs
from megaphone.access.certificates import CertificateCallers
from megaphone.access.ports import InvalidToken, Verifier
from megaphone.access.remembered import RememberedCallers
from megaphone.access.tokens import by_digest, digest_of, grant_of
from megaphone.core.access import ANYONE, Caller, Names, Peer
from megaphone.core.peers import PeerLimits
from megaphone.core.tenants import Tenants
from megaphone.errors import MegaphoneError, TokenExpired
from megaphone.settings import Auth, Settings, Token

if TYPE_CHECKING:
    from megaphone.model import Action

REFUSED_REMEMBERED: Final = 10_000
REFUSED_FOR_S: Final = 10.0
"""For how long a proof that was refused is refused again without another look."""
BEARER: Final = "bearer "
USUAL_BEARER: Final = "Bearer "
"""With it begin the proofs that are remembered."""


class Refusal(NamedTuple):
    """A proof that was refused a short time ago, and is refused again without another look."""

    until: float
    is_expired: bool
    reason: str


class Doorkeeper:
    """Fulfils `core.ports.Doorkeeper` for the tokens of the settings, for those that verifiers
    recognise, and for certificates. Its methods belong to the event loop, but `prepare` may run in
    a thread."""

    def __init__(
        self,
        settings: Settings,
        *,
        tenants: Tenants,
        peers: PeerLimits,
        clock: Callable[[], float],
        verifiers: Sequence[Verifier] = (),
        on_change: Callable[[Caller], None] | None = None,
    ) -> None:
        """`clock` returns the time of the event loop. `on_change` is called with the
        caller who has no proof, when callers may have lost what they were allowed. The verifiers
        belong to this doorkeeper, which sets their `on_revoked`."""
        self._tenants = tenants
        self._peers = peers
        self._clock = clock
        self._verifiers = verifiers
        self._on_change = on_change
        self._certificates = CertificateCallers(tenants)
        self._nobody = Caller("anyone", tenants.default, has_proof=False)
        """Who has no proof, if the settings ask anybody for one or limit the tenant `default`."""
        self._tokens: dict[str, Caller] = {}
        """The owners of the tokens in the settings, by the hashes of those."""
        self._verified: WeakSet[Caller] = WeakSet()
        """Those whom a verifier has admitted, and who still call or are remembered."""
        self._known = RememberedCallers()
        self._refused: dict[str, Refusal] = {}
        """Those of the last seconds, by the hashes of the proofs."""
        self._generation = 0
        """Counts the settings that have taken effect."""
        self.refused = RefusedProofs(clock)
        self._required: frozenset[Action] = frozenset()
        self._everybody: Caller | None = ANYONE
        """The caller of every call, if the settings say nothing of callers; then nobody looks at
        tokens, which may be for a proxy before this node."""
        self._has_certificates = False
        """Whether a call without a token may come from somebody with a certificate."""
        self._take(settings.auth)
        for verifier in verifiers:
            verifier.on_revoked = self._drop_revoked

    # -- Settings

    def prepare(self, settings: Settings) -> Callable[[], None]:
        """Fulfils `megaphone.reload.Reloadable`. Each caller keeps its object, so that what it is
        allowed changes for the calls and reads that it has open too."""
        return lambda: self._take(settings.auth)

    def _take(self, auth: Auth) -> None:
        self._required = frozenset(auth.require)
        is_limited = self._tenants.default.is_limited
        asks = auth.require or auth.tokens or auth.issuers or auth.certificates
        self._everybody = None if asks else self._nobody if is_limited else ANYONE
        self._has_certificates = bool(auth.certificates)
        self._certificates.take(auth.certificates, self._required)
        self._nobody.change((), self._required)
        self._take_tokens(auth.tokens.items())
        for caller in self._verified:
            caller.require(self._required)
        self._generation += 1
        self._known.clear()
        self._refused.clear()
        self._report_change()

    def _report_change(self) -> None:
        if self._on_change is not None:
            self._on_change(self._everybody or self._nobody)

    def _drop_revoked(self) -> None:
        self._known.drop_revoked()
        self._report_change()

    def _take_tokens(self, named: Iterable[tuple[str, Token]]) -> None:
        before, self._tokens = self._tokens, {}
        for digest, (name, token) in by_digest(dict(named)).items():
            tenant, grants = self._tenants.named(token.tenant), (grant_of(token),)
            caller = before.get(digest)
            if caller is not None and caller.tenant is tenant:
                del before[digest]
                caller.change(grants, self._required)
            else:
                caller = Caller(f"token {name}", tenant, grants, required=self._required)
            self._tokens[digest] = caller
        for caller in before.values():
            caller.revoke()

    # -- Callers

    def known(self, proof: str | None, names: Names | None = None) -> Caller | None:
        if self._everybody is not None:
            return self._everybody
        caller = None if proof is None else self._known.get(proof)
        # Schemes other than Bearer are for proxies before us.
        if caller is None and (proof is None or not is_bearer(proof)):
            if not self._has_certificates:
                return self._nobody
            return None if names is None else self._certificates.of(names) or self._nobody
        return caller

    async def admit(self, proof: str | None, peer: Peer) -> Caller:
        caller = self.known(proof, peer.certificate_names)
        if caller is not None or proof is None:
            return caller or self._nobody
        token = proof[len(BEARER) :].strip(" ")
        usual = USUAL_BEARER + token
        if (caller := self._known.get(usual)) is not None:
            return caller
        digest = digest_of(token)
        self._peers.check_failures(peer.ip, self._clock())
        try:
            self._refuse_again(digest)
            caller = await self._find(token, digest)
        except MegaphoneError as error:
            self._note_refused(digest, error, peer)
            raise
        self._known.add(usual, caller)
        return caller

    async def _find(self, token: str, digest: str) -> Caller:
        """Raises: InvalidToken; TokenExpired; KeysUnavailable."""
        while True:
            generation = self._generation
            caller = self._tokens.get(digest) or await self._verify(token)
            if generation == self._generation:  # otherwise it is one of settings that have gone
                return caller

    async def _verify(self, token: str) -> Caller:
        for verifier in self._verifiers:
            if verifier.recognises(token):
                caller = await verifier.verify(token, self._clock())
                caller.require(self._required)
                self._verified.add(caller)
                return caller
        raise InvalidToken("nobody knows it")

    # -- Refusals

    def _refuse_again(self, digest: str) -> None:
        """Raises: InvalidToken or TokenExpired, if the same proof was refused so a short time
        ago."""
        refusal = self._refused.get(digest)
        if refusal is not None and self._clock() < refusal.until:
            raise TokenExpired if refusal.is_expired else InvalidToken(refusal.reason)

    def _note_refused(self, digest: str, error: MegaphoneError, peer: Peer) -> None:
        is_expired = isinstance(error, TokenExpired)
        reason = error.reason if isinstance(error, InvalidToken) else str(error)
        self.refused.add(peer.ip, error.code, reason)
        if not (is_expired or isinstance(error, InvalidToken)):
            return
        now = self._clock()
        self._peers.note_failure(peer.ip, now)
        if (known := self._refused.get(digest)) is not None and now < known.until:
            return  # so that it is looked at again, however often it comes
        self._refused.pop(digest, None)
        if len(self._refused) >= REFUSED_REMEMBERED:
            del self._refused[next(iter(self._refused))]
        self._refused[digest] = Refusal(now + REFUSED_FOR_S, is_expired, reason)


def is_bearer(proof: str) -> bool:
    return proof[: len(BEARER)].lower() == BEARER
