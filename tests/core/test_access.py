"""What a caller may do, by its grants, its time, and what the node requires of everybody."""

import math

import pytest

from megaphone.core.access import ANYONE, STREAMS_REMEMBERED, Action, Caller, Grant, fits
from megaphone.core.tenants import DEFAULT
from megaphone.errors import PermissionDenied, TokenExpired, Unauthenticated

ALL = frozenset(Action)
WRITES = frozenset({Action.WRITE})


def caller(
    *grants: Grant, required: frozenset[Action] = ALL, expires_at: float = math.inf
) -> Caller:
    return Caller("token shop", DEFAULT, grants, required=required, expires_at=expires_at)


@pytest.mark.parametrize("action", Action)
def test_without_requirements_anyone_may_do_everything(action: Action) -> None:
    ANYONE.check(action, 1e9, "any stream")
    ANYONE.check_streams(action, 1e9, None)


@pytest.mark.parametrize("action", Action)
def test_a_required_proof_is_asked_of_one_who_has_none(action: Action) -> None:
    nobody = Caller("anyone", DEFAULT, required={action}, has_proof=False)
    with pytest.raises(Unauthenticated, match=r"needs a token: send `Authorization: Bearer …`"):
        nobody.check(action, 0)
    for other in ALL - {action}:
        nobody.check(other, 0)


@pytest.mark.parametrize("action", Action)
def test_a_caller_may_do_what_is_granted_and_what_is_open_to_all(action: Action) -> None:
    caller(Grant(frozenset({action}))).check(action, 0, "s")
    caller(required=ALL - {action}).check(action, 0, "s")
    with pytest.raises(PermissionDenied, match="this token may not") as raised:
        caller(Grant(ALL - {action})).check(action, 0, "s")
    assert raised.value.action == action.value


def test_a_caller_may_do_nothing_from_the_second_on_in_which_its_token_expires() -> None:
    shop = caller(Grant(ALL), expires_at=100.0)
    shop.check(Action.WRITE, 99.9)
    with pytest.raises(TokenExpired):
        shop.check(Action.WRITE, 100.0)
    # Although everybody else may do it: the client learns that it needs a new token.
    with pytest.raises(TokenExpired):
        caller(required=frozenset(), expires_at=100.0).check(Action.WRITE, 100.0)


@pytest.mark.parametrize(
    ("stream_id", "pattern", "allowed"),
    [
        ("orders", "orders", True),
        ("orders.eu", "orders", False),
        ("orders.eu", "orders.*", True),
        ("orders", "orders.*", False),
        ("a*", "a*", True),
        ("xorders", "*orders", False),
        ("*orders", "*orders", True),
        ("anything", "*", True),
    ],
)
def test_patterns(stream_id: str, pattern: str, allowed: bool) -> None:
    assert fits(stream_id, pattern) is allowed


def test_streams_limit_writes() -> None:
    shop = caller(Grant(WRITES, ("orders.*", "news")), Grant(WRITES, ("audit",)))
    shop.check(Action.WRITE, 0)
    for allowed in ("orders.eu", "news", "audit"):
        shop.check(Action.WRITE, 0, allowed)
    for _ in range(2):  # the second answer is a remembered one
        with pytest.raises(PermissionDenied, match="may not write to this stream"):
            shop.check(Action.WRITE, 0, "secrets")


def test_what_needs_a_proof_is_limited_to_the_channels_of_the_tenant() -> None:
    shop = caller(Grant(ALL), required=WRITES)
    assert shop.check(Action.WRITE, 0, "s") is DEFAULT
    assert shop.check_streams(Action.WRITE, 0, ["s"]) is DEFAULT
    assert shop.check(Action.READ, 0) is None
    assert shop.check_streams(Action.READ, 0, None) is None
    assert ANYONE.check(Action.WRITE, 0) is None


def test_the_grants_of_one_action_say_nothing_of_another() -> None:
    shop = caller(Grant(WRITES, ("orders.*",)), Grant(frozenset({Action.READ}), ("news",)))
    with pytest.raises(PermissionDenied):
        shop.check(Action.WRITE, 0, "news")
    with pytest.raises(PermissionDenied):
        shop.check_streams(Action.READ, 0, ["orders.eu"])


def test_a_read_of_limited_streams_must_name_them() -> None:
    shop = caller(Grant(frozenset({Action.READ}), ("orders.*", "news")))
    shop.check_streams(Action.READ, 0, ["news", "orders.eu"])
    with pytest.raises(PermissionDenied, match=r"only some streams; allowed are orders\.\*, news"):
        shop.check_streams(Action.READ, 0, None)
    with pytest.raises(PermissionDenied):
        shop.check_streams(Action.READ, 0, ["news", "secrets"])
    caller(Grant(frozenset({Action.READ}), ("news", "*"))).check_streams(Action.READ, 0, None)


def test_what_is_remembered_of_streams_is_bounded() -> None:
    shop = caller(Grant(WRITES, ("s*",)))
    for number in range(3 * STREAMS_REMEMBERED):
        shop.check(Action.WRITE, 0, f"s{number}")
    assert len(shop._rights[Action.WRITE].known or ()) <= STREAMS_REMEMBERED


def test_a_change_holds_at_once_and_a_revoked_caller_may_do_nothing() -> None:
    shop = caller(Grant(WRITES, ("news",)))
    shop.check(Action.WRITE, 0, "news")
    shop.change([Grant(WRITES, ("orders",))], ALL)
    shop.check(Action.WRITE, 0, "orders")
    with pytest.raises(PermissionDenied):
        shop.check(Action.WRITE, 0, "news")
    shop.revoke()
    with pytest.raises(Unauthenticated) as raised:
        shop.check(Action.WRITE, 0, "orders")
    assert raised.value.was_presented
