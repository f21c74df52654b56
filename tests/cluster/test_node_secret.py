"""Nodes prove to each other that they have the same secret; nothing else passes for a proof."""

import pytest

from megaphone.cluster import node_secret
from megaphone.cluster.node_secret import GREETING, NodeGuard, NodeSigner
from megaphone.errors import LimitExceeded, Unauthenticated
from megaphone.settings import Nodes

SECRET = "s" * 32
OTHER = "o" * 32
FORWARD = "/megaphone.SyncService/ForwardEvents"
NOW = 1_700_000_000.5


def guard(*, is_loopback: bool = False, **nodes: object) -> NodeGuard:
    return NodeGuard(Nodes(**{"secret": SECRET} | nodes), is_loopback=is_loopback)  # type: ignore[arg-type]


def admitted(target: NodeGuard, method: str, signer: NodeSigner | None, now: float = NOW) -> bool:
    """Tell whether a call that is signed now for that target is admitted."""
    proof = None if signer is None else signer.prove(method, now, target_id_of(target, method)).text
    try:
        target.admit(method, proof, now)
    except Unauthenticated:
        return False
    return True


def target_id_of(target: NodeGuard, method: str) -> str:
    return "" if method == GREETING else target.id


def refusal(target: NodeGuard, method: str, proof: str | None, now: float = NOW) -> str:
    with pytest.raises(Unauthenticated) as raised:
        target.admit(method, proof, now)
    assert SECRET not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(
    ("nodes", "is_loopback", "without", "with_secret", "with_another"),
    [
        ({"secret": None}, True, True, True, True),
        ({"secret": None}, False, False, False, False),
        ({"secret": None, "open": True}, False, True, True, True),
        ({}, True, False, True, False),
        ({}, False, False, True, False),
        ({"open": True}, False, True, True, False),
    ],
)
@pytest.mark.parametrize("method", [GREETING, FORWARD])
def test_who_is_admitted(
    method: str,
    nodes: dict[str, object],
    is_loopback: bool,
    without: bool,
    with_secret: bool,
    with_another: bool,
) -> None:
    target = guard(is_loopback=is_loopback, **nodes)
    assert admitted(target, method, None) is without
    assert admitted(target, method, NodeSigner(SECRET)) is with_secret
    assert admitted(target, method, NodeSigner(OTHER)) is with_another


def test_who_is_refused_is_told_which_setting_it_is_about() -> None:
    assert "set the same `nodes.secret` on both" in refusal(guard(), FORWARD, None)
    closed = refusal(guard(secret=None), FORWARD, None)
    assert "`nodes.secret`" in closed
    assert "`nodes.open = true`" in closed
    other = NodeSigner(OTHER).prove(GREETING, NOW).text
    assert "is `nodes.secret` the same on both?" in refusal(guard(), GREETING, other)


def test_the_source_knows_the_target_by_its_answer() -> None:
    target, source = guard(), NodeSigner(SECRET)
    greeting = source.prove(GREETING, NOW)
    answer = target.admit(GREETING, greeting.text, NOW)
    assert answer is not None
    assert source.target_of(greeting, answer) == target.id
    for wrong in (None, "", "v1", answer.upper(), answer + "0", greeting.text):
        assert source.target_of(greeting, wrong) is None
    assert NodeSigner(OTHER).target_of(greeting, answer) is None
    assert source.target_of(source.prove(GREETING, NOW), answer) is None


def test_an_answer_of_one_node_does_not_pass_with_the_id_of_another() -> None:
    target, source = guard(), NodeSigner(SECRET)
    greeting = source.prove(GREETING, NOW)
    answer = target.admit(GREETING, greeting.text, NOW)
    assert answer is not None
    version, _, mac = answer.split(".")
    assert source.target_of(greeting, f"{version}.{guard().id}.{mac}") is None


@pytest.mark.parametrize("method", [GREETING, FORWARD])
def test_a_proof_is_accepted_once(method: str) -> None:
    target, source = guard(), NodeSigner(SECRET)
    proof = source.prove(method, NOW, target_id_of(target, method)).text
    target.admit(method, proof, NOW)
    for later in (0.0, 59.0):
        assert "used before" in refusal(target, method, proof, NOW + later)
    assert "clocks" in refusal(target, method, proof, NOW + 200)


def test_a_proof_is_for_one_method_and_but_for_the_greeting_for_one_target() -> None:
    target, other, source = guard(), guard(), NodeSigner(SECRET)
    greeting = source.prove(GREETING, NOW).text
    refusal(target, FORWARD, greeting)
    other.admit(GREETING, greeting, NOW)
    forward = source.prove(FORWARD, NOW, target.id).text
    refusal(target, GREETING, forward)
    refusal(other, FORWARD, forward)
    target.admit(FORWARD, forward, NOW)


@pytest.mark.parametrize("difference", [-61, 61, -3600, 10**9])
def test_a_proof_of_another_time_is_refused(difference: int) -> None:
    old = NodeSigner(SECRET).prove(GREETING, NOW + difference).text
    assert "differ by more than 60 s" in refusal(guard(), GREETING, old)


@pytest.mark.parametrize("difference", [-59, 59])
def test_clocks_may_differ_by_a_minute(difference: int) -> None:
    proof = NodeSigner(SECRET).prove(GREETING, NOW + difference).text
    assert guard().admit(GREETING, proof, NOW) is not None


def test_no_part_of_a_proof_can_be_changed() -> None:
    proof = NodeSigner(SECRET).prove(GREETING, NOW).text
    target = guard()
    for place, character in enumerate(proof):
        changed = proof[:place] + ("1" if character != "1" else "2") + proof[place + 1 :]
        refusal(target, GREETING, changed)
    for wrong in ("", "v1", "x" * 10_000, proof + "0", proof[:-1], f" {proof}", "v1.é.0.0"):
        refusal(target, GREETING, wrong)
    target.admit(GREETING, proof, NOW)


def test_the_previous_secret_is_accepted_and_answered_but_not_used_to_sign() -> None:
    target = guard(secret=OTHER, previous_secret=SECRET)
    for secret in (SECRET, OTHER):
        source = NodeSigner(secret)
        greeting = source.prove(GREETING, NOW)
        assert source.target_of(greeting, target.admit(GREETING, greeting.text, NOW)) == target.id
        assert admitted(target, FORWARD, source)
    assert not admitted(target, FORWARD, NodeSigner("x" * 32))


def test_what_is_remembered_is_bounded_and_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_secret, "MAX_REMEMBERED", 3)
    target, source = guard(), NodeSigner(SECRET)
    for second in range(3):
        assert admitted(target, FORWARD, source, NOW + second)
        assert not admitted(target, FORWARD, NodeSigner(OTHER), NOW + second)
    with pytest.raises(LimitExceeded):
        admitted(target, FORWARD, source, NOW + 119)
    assert admitted(target, FORWARD, source, NOW + 120.5)


def test_no_secret_and_no_proof_is_in_the_text_of_anything() -> None:
    proof = NodeSigner(SECRET).prove(GREETING, NOW)
    for one in (proof, NodeSigner(SECRET), guard()):
        assert SECRET not in repr(one)
        assert proof.text not in repr(one)
