"""The doorkeeper: whom it lets in, what it remembers, and what a reload changes."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from megaphone.access import doorkeeper as module
from megaphone.access import remembered
from megaphone.access.audit import CODES
from megaphone.access.doorkeeper import REFUSED_FOR_S, Doorkeeper
from megaphone.access.ports import InvalidToken
from megaphone.access.tokens import PREFIX, digest_of, new_token
from megaphone.core.access import ANYONE, Action, Caller, Grant, Peer
from megaphone.core.peers import PeerLimits
from megaphone.core.tenants import DEFAULT, Tenants
from megaphone.errors import KeysUnavailable, PermissionDenied, TokenExpired, Unauthenticated
from megaphone.settings import Auth, Issuer, Settings, TenantLimits, Token

TOKEN = "mgp_" + "a" * 43
OTHER = "mgp_" + "b" * 43
PEER = Peer("192.0.2.1")
READS = Token(sha256=digest_of(TOKEN), actions=(Action.READ,), tenant="shop")


def settings(*require: Action, **tokens: Token) -> Settings:
    return Settings(auth=Auth(require=require, tokens=tokens))


ISSUERS = {"main": Issuer(issuer="main", audience="here", secret="s" * 32)}
"""Settings for which a verifier is needed."""


@dataclass
class Door:
    """A doorkeeper, with what it calls."""

    now: float = 1_000.0
    tenants: Tenants = field(default_factory=Tenants)
    verifier: "FakeIssuer | None" = None
    changes: list[Caller] = field(default_factory=list)

    def keeper(self, settings: Settings) -> Doorkeeper:
        if self.verifier is not None:
            settings = Settings(auth=replace(settings.auth, issuers=ISSUERS))
        return Doorkeeper(
            settings,
            tenants=self.tenants,
            peers=PeerLimits(settings),
            clock=lambda: self.now,
            verifiers=() if self.verifier is None else (self.verifier,),
            on_change=self.changes.append,
        )


@dataclass
class FakeIssuer:
    """Verifies the tokens that begin with `jwt`, and says what a test wants."""

    answer: Caller | Exception
    asked: int = 0
    on_revoked: Callable[[], None] | None = None

    def recognises(self, token: str) -> bool:
        return token.startswith("jwt")

    async def verify(self, token: str, now: float) -> Caller:
        self.asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def door() -> Door:
    return Door()


def test_where_nothing_is_configured_nobody_is_asked(door: Door) -> None:
    keeper = door.keeper(Settings())
    for proof in (None, "Bearer wrong", "Basic x", ""):
        assert keeper.known(proof) is ANYONE


async def test_where_only_limits_are_configured_nobody_looks_at_tokens(door: Door) -> None:
    limited = {"default": TenantLimits(channels=1)}
    door.tenants.prepare(Settings(tenants=limited))()
    keeper = door.keeper(Settings(tenants=limited))
    nobody = keeper.known(None)
    assert nobody is not None
    assert nobody is not ANYONE  # because the limits apply to it
    assert nobody.tenant is door.tenants.default
    for proof in ("Bearer x", "Basic eDp5"):
        assert keeper.known(proof) is nobody
        assert await keeper.admit(proof, PEER) is nobody
    assert keeper.refused.counts == dict.fromkeys(CODES, 0)


async def test_the_owner_of_a_token_is_admitted_once_and_known_then(door: Door) -> None:
    keeper = door.keeper(settings(Action.READ, shop=READS))
    proof = f"Bearer {TOKEN}"
    assert keeper.known(proof) is None
    shop = await keeper.admit(proof, PEER)
    assert keeper.known(proof) is shop
    assert (shop.name, shop.tenant) == ("token shop", door.tenants.named("shop"))
    shop.check(Action.READ, door.now)
    # The same credential in other words is the same caller.
    assert await keeper.admit(f"bearer  {TOKEN}", PEER) is shop


@pytest.mark.parametrize("proof", [None, "Basic c2hvcDpzaG9w", f"Token {TOKEN}", TOKEN, ""])
async def test_who_presents_no_bearer_token_is_nobody(door: Door, proof: str | None) -> None:
    keeper = door.keeper(settings(Action.READ, shop=READS))
    nobody = keeper.known(proof)
    assert nobody is not None
    assert await keeper.admit(proof, PEER) is nobody
    nobody.check(Action.CREATE, door.now)  # which needs no proof
    with pytest.raises(Unauthenticated) as raised:
        nobody.check(Action.READ, door.now)
    assert not raised.value.was_presented


@pytest.mark.parametrize(
    "token",
    [
        OTHER,
        "",
        " ",
        TOKEN[:-1],
        f"{TOKEN}x",
        f"{TOKEN}, Bearer {TOKEN}",
        digest_of(TOKEN),
        "\udc80",
    ],
)
async def test_a_wrong_token_is_refused_even_where_none_is_required(door: Door, token: str) -> None:
    keeper = door.keeper(settings(shop=READS))
    with pytest.raises(Unauthenticated, match=r"^the token is not valid here$") as raised:
        await keeper.admit(f"Bearer {token}", PEER)
    assert raised.value.was_presented
    assert keeper.known(f"Bearer {token}") is None


async def test_both_tokens_are_good_while_one_takes_the_place_of_the_other(door: Door) -> None:
    both = Token(sha256=digest_of(OTHER), previous_sha256=digest_of(TOKEN), actions=(Action.READ,))
    keeper = door.keeper(settings(Action.READ, shop=both))
    old = await keeper.admit(f"Bearer {TOKEN}", PEER)
    new = await keeper.admit(f"Bearer {OTHER}", PEER)
    keeper.prepare(
        settings(Action.READ, shop=Token(sha256=digest_of(OTHER), actions=both.actions))
    )()
    new.check(Action.READ, door.now)
    with pytest.raises(Unauthenticated):
        old.check(Action.READ, door.now)
    with pytest.raises(Unauthenticated):
        await keeper.admit(f"Bearer {TOKEN}", PEER)


async def test_a_reload_changes_what_open_calls_may_do(door: Door) -> None:
    keeper = door.keeper(settings(Action.READ, Action.WRITE, shop=READS))
    shop = await keeper.admit(f"Bearer {TOKEN}", PEER)
    writes = Token(sha256=READS.sha256, actions=(Action.WRITE,), tenant="shop")
    apply = keeper.prepare(settings(Action.READ, Action.WRITE, Action.ACK, shop=writes))
    shop.check(Action.READ, door.now)  # nothing has changed yet
    apply()
    shop.check(Action.WRITE, door.now)
    for action in (Action.READ, Action.ACK):
        with pytest.raises(PermissionDenied):
            shop.check(action, door.now)
    assert await keeper.admit(f"Bearer {TOKEN}", PEER) is shop
    assert door.changes[-1] is keeper.known(None)


async def test_another_tenant_is_another_caller(door: Door) -> None:
    keeper = door.keeper(settings(Action.READ, shop=READS))
    before = await keeper.admit(f"Bearer {TOKEN}", PEER)
    moved = Token(sha256=READS.sha256, actions=READS.actions, tenant="other")
    keeper.prepare(settings(Action.READ, shop=moved))()
    after = await keeper.admit(f"Bearer {TOKEN}", PEER)
    assert after.tenant is door.tenants.named("other")
    with pytest.raises(Unauthenticated):
        before.check(Action.READ, door.now)


def test_a_node_may_begin_to_ask_and_cease_to(door: Door) -> None:
    keeper = door.keeper(Settings())
    keeper.prepare(settings(Action.CREATE))()
    nobody = keeper.known(None)
    assert nobody is not None
    assert nobody is not ANYONE
    with pytest.raises(Unauthenticated):
        nobody.check(Action.CREATE, door.now)
    keeper.prepare(Settings())()
    assert keeper.known(None) is ANYONE
    assert door.changes[-1] is ANYONE
    nobody.check(Action.CREATE, door.now)  # of a call that is still open


# -- Verifiers


async def test_a_verifier_is_asked_once_for_each_token_that_it_recognises(door: Door) -> None:
    subject = Caller("issuer main: ada", DEFAULT, [Grant(frozenset({Action.READ}))])
    door.verifier = FakeIssuer(subject)
    keeper = door.keeper(settings(Action.READ, Action.WRITE))
    assert await keeper.admit("Bearer jwt.1", PEER) is subject
    assert keeper.known("Bearer jwt.1") is subject
    assert door.verifier.asked == 1
    with pytest.raises(Unauthenticated):
        await keeper.admit("Bearer other", PEER)
    assert door.verifier.asked == 1
    with pytest.raises(PermissionDenied):
        subject.check(Action.WRITE, door.now)
    keeper.prepare(settings(Action.READ))()  # since which everybody may write
    subject.check(Action.WRITE, door.now)


@pytest.mark.parametrize("error", [InvalidToken("its signature is wrong"), TokenExpired()])
async def test_a_refused_token_is_not_looked_at_again_for_ten_seconds(
    door: Door, error: Exception
) -> None:
    door.verifier = FakeIssuer(error)
    keeper = door.keeper(settings())
    for _ in range(5):
        with pytest.raises(type(error)):
            await keeper.admit("Bearer jwt.1", PEER)
    assert door.verifier.asked == 1
    door.now += REFUSED_FOR_S
    with pytest.raises(type(error)):
        await keeper.admit("Bearer jwt.1", PEER)
    assert door.verifier.asked == 2


async def test_a_token_whose_keys_were_not_there_is_looked_at_again(door: Door) -> None:
    door.verifier = FakeIssuer(KeysUnavailable())
    keeper = door.keeper(settings())
    for _ in range(2):
        with pytest.raises(KeysUnavailable):
            await keeper.admit("Bearer jwt.1", PEER)
    assert door.verifier.asked == 2


async def test_a_reload_while_a_token_is_verified_verifies_it_anew(door: Door) -> None:
    first = Caller("issuer main: ada", DEFAULT)
    keeper: Doorkeeper

    class Reloading(FakeIssuer):
        async def verify(self, token: str, now: float) -> Caller:
            if self.asked == 0:
                keeper.prepare(settings(Action.READ))()
            return await super().verify(token, now)

    door.verifier = Reloading(first)
    keeper = door.keeper(settings())
    await keeper.admit("Bearer jwt.1", PEER)
    assert door.verifier.asked == 2


async def test_a_caller_whom_a_verifier_revokes_is_verified_anew(door: Door) -> None:
    door.verifier = FakeIssuer(Caller("issuer main: ada", DEFAULT, [Grant(frozenset(Action))]))
    keeper = door.keeper(settings(Action.READ))
    revoked = await keeper.admit("Bearer jwt.1", PEER)
    other = door.verifier.answer = Caller("issuer main: bob", DEFAULT)
    assert await keeper.admit("Bearer jwt.2", PEER) is other
    revoked.revoke()
    door.changes.clear()
    assert door.verifier.on_revoked is not None
    door.verifier.on_revoked()
    assert door.changes == [keeper.known(None)]
    assert keeper.known("Bearer jwt.2") is other
    assert keeper.known("Bearer jwt.1") is None
    assert await keeper.admit("Bearer jwt.1", PEER) is other


# -- Bounds


async def test_what_is_remembered_is_bounded(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "MOST", 3)
    monkeypatch.setattr(module, "REFUSED_REMEMBERED", 3)
    door.verifier = FakeIssuer(Caller("issuer main: ada", DEFAULT))
    keeper = door.keeper(settings())
    for number in range(10):
        await keeper.admit(f"Bearer jwt.{number}", PEER)
        with pytest.raises(Unauthenticated):
            await keeper.admit(f"Bearer {number}", PEER)
    assert (len(keeper._known), len(keeper._refused)) == (3, 3)
    assert keeper.known("Bearer jwt.9") is not None
    assert keeper.known("Bearer jwt.0") is None


async def test_a_token_is_remembered_once_in_whatever_words_it_comes(door: Door) -> None:
    subject = Caller("issuer main: ada", DEFAULT)
    door.verifier = FakeIssuer(subject)
    keeper = door.keeper(settings())
    for scheme in ("Bearer", "bearer", "BEARER", "bEaReR"):
        for spaces in (1, 2, 1_000):
            proof = f"{scheme}{' ' * spaces}jwt.1{' ' * (spaces - 1)}"
            assert await keeper.admit(proof, PEER) is subject
    assert door.verifier.asked == 1
    assert keeper.known("Bearer jwt.1") is subject
    assert len(keeper._known) == 1


async def test_the_size_of_what_is_remembered_is_bounded(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remembered, "MOST_CHARACTERS", 10_000)
    subject = Caller("issuer main: ada", DEFAULT)
    door.verifier = FakeIssuer(subject)
    keeper = door.keeper(settings())
    proofs = [f"Bearer jwt.{number}.{'x' * 4_000}" for number in range(5)]
    for round_ in range(2):
        for proof in proofs:
            await keeper.admit(proof, PEER)
        assert [keeper.known(proof) for proof in proofs] == [None] * 3 + [subject] * 2, round_
    keeper.prepare(Settings(auth=Auth(issuers=ISSUERS)))()
    assert len(keeper._known) == 0
    for proof in proofs:
        await keeper.admit(proof, PEER)
    assert keeper.known(proofs[-2]) is subject  # so nothing of before the reload counts


# -- The audit log


async def test_refusals_are_logged_once_a_second_for_each_network(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    keeper = door.keeper(settings(Action.READ))
    neighbours = [Peer("2001:db8::1"), Peer("2001:db8::2"), PEER, Peer("")]
    with caplog.at_level(logging.DEBUG):
        for _ in range(3):
            for peer in neighbours:
                with pytest.raises(Unauthenticated):
                    await keeper.admit(f"Bearer {OTHER}", peer)
        door.now += 1
        with pytest.raises(Unauthenticated):
            await keeper.admit(f"Bearer {OTHER}", PEER)
    assert {record.getMessage() for record in caplog.records} == {
        "refused a token: nobody knows it"
    }
    fields = [record.__dict__ for record in caplog.records]
    assert [(one["peer"], one["code"], one.get("others")) for one in fields] == [
        ("2001:db8::1", "UNAUTHENTICATED", None),
        ("192.0.2.1", "UNAUTHENTICATED", None),
        ("local", "UNAUTHENTICATED", None),
        ("192.0.2.1", "UNAUTHENTICATED", 2),
    ]
    assert {record.name for record in caplog.records} == {"megaphone.audit"}
    assert OTHER not in caplog.text
    assert keeper.refused.counts == dict.fromkeys(CODES, 0) | {"UNAUTHENTICATED": 13}


async def test_a_flood_of_addresses_takes_no_memory(door: Door) -> None:
    keeper = door.keeper(settings(Action.READ))
    for number in range(3_000):
        with pytest.raises(Unauthenticated):
            await keeper.admit("Bearer x", Peer(f"10.0.{number >> 8}.{number & 255}"))
    assert len(keeper.refused._lines) <= 1_000


def test_tokens_are_random_and_long() -> None:
    tokens = {new_token() for _ in range(1_000)}
    assert len(tokens) == 1_000
    assert all(token.startswith(PREFIX) and len(token) == len(PREFIX) + 43 for token in tokens)
