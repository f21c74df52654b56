"""What the claims of a token grant."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megaphone.access.grants import ACTIONS, DETAIL_TYPE, MAX_DETAILS, MalformedGrant, grants_of
from megaphone.core.access import Caller, Grant
from megaphone.core.tenants import DEFAULT
from megaphone.errors import PermissionDenied
from megaphone.model import Action

WRITE = frozenset({Action.WRITE})
NOW = 1.0


def detail(**members: Any) -> dict[str, Any]:
    return {"type": DETAIL_TYPE, "actions": ["write"]} | members


def may(caller: Caller, action: Action, stream_id: str | None = None) -> bool:
    try:
        caller.check(action, NOW, stream_id)
    except PermissionDenied:
        return False
    return True


@pytest.mark.parametrize(
    ("scope", "details", "grants"),
    [
        pytest.param(None, None, [], id="no claim"),
        pytest.param("", [], [], id="empty claims"),
        pytest.param("openid email", None, [], id="scopes of others"),
        pytest.param("write create", None, [], id="our words without the prefix"),
        pytest.param("megaphone:fly megaphone: megaphone:WRITE", None, [], id="unknown actions"),
        pytest.param("openid megaphone:write", None, [Grant(WRITE)], id="a scope"),
        pytest.param(
            "megaphone:create megaphone:metrics",
            None,
            [Grant(frozenset({Action.CREATE, Action.METRICS}))],
            id="scopes",
        ),
        pytest.param("megaphone:write\tmegaphone:create", None, [], id="a tab divides no words"),
        pytest.param(None, [detail()], [Grant(WRITE)], id="every stream"),
        pytest.param(
            None,
            [detail(streams=["orders", "news.*", "*"])],
            [Grant(WRITE, ("orders", "news.*", "*"))],
            id="some streams",
        ),
        pytest.param(None, [detail(streams=[])], [Grant(WRITE, ())], id="no stream"),
        pytest.param(None, [detail(actions=["fly", "write"])], [Grant(WRITE)], id="one is unknown"),
        pytest.param(None, [detail(actions=["fly"])], [], id="all are unknown"),
        pytest.param(None, [detail(actions=[])], [], id="no action"),
        pytest.param(None, [{"type": "payment", "actions": 7}], [], id="another type"),
        pytest.param(
            "megaphone:ack",
            [detail(streams=["a"]), {"type": "payment"}, detail(streams=["b*"])],
            [Grant(frozenset({Action.ACK})), Grant(WRITE, ("a",)), Grant(WRITE, ("b*",))],
            id="all of them",
        ),
        pytest.param(None, [{"type": "x"}] * MAX_DETAILS, [], id="as many as may be"),
    ],
)
def test_grants(scope: object, details: object, grants: list[Grant]) -> None:
    assert grants_of(scope, details) == grants


@pytest.mark.parametrize(
    ("scope", "details"),
    [
        pytest.param(["megaphone:write"], None, id="scope is a list"),
        pytest.param(7, None, id="scope is a number"),
        pytest.param(None, detail(), id="details are no list"),
        pytest.param(None, "[]", id="details are a text"),
        pytest.param(None, [7], id="a detail is a number"),
        pytest.param(None, [{"actions": ["write"]}], id="no type"),
        pytest.param(None, [{"type": 7}], id="the type is a number"),
        pytest.param(None, [{"type": DETAIL_TYPE}], id="no actions"),
        pytest.param(None, [detail(actions="write")], id="actions are a text"),
        pytest.param(None, [detail(actions=["write", 7])], id="an action is a number"),
        pytest.param(None, [detail(streams=None)], id="streams are null"),
        pytest.param(None, [detail(streams="*")], id="streams are a text"),
        pytest.param(None, [detail(streams=[""])], id="a stream is empty"),
        pytest.param(None, [detail(streams=["a*b"])], id="a star in the middle"),
        pytest.param(None, [detail(streams=["**"])], id="two stars"),
        pytest.param(None, [detail(locations=["https://a.example"])], id="an unknown member"),
        pytest.param(None, [detail(), detail(streams=7)], id="the second of two"),
        pytest.param(None, [{"type": "x"}] * (MAX_DETAILS + 1), id="too many"),
    ],
)
def test_a_malformed_claim_makes_the_token_invalid(scope: object, details: object) -> None:
    with pytest.raises(MalformedGrant):
        grants_of(scope, details)


TEXTS = st.text("ab.", max_size=4)
STREAM_IDS = st.text("ab.", min_size=1, max_size=5)
PATTERNS = STREAM_IDS | TEXTS.map(lambda text: text + "*")
DETAILS = st.fixed_dictionaries(
    {"type": st.sampled_from([DETAIL_TYPE, "payment"])},
    optional={
        "streams": st.lists(PATTERNS, max_size=3),
    },
).flatmap(
    lambda made: st.lists(st.sampled_from([*ACTIONS, "fly"]), max_size=3).map(
        lambda actions: made | {"actions": actions}
    )
)


@given(
    scopes=st.lists(st.sampled_from([*ACTIONS, "fly"]), max_size=3),
    details=st.lists(DETAILS, max_size=3),
    action=st.sampled_from(Action),
    stream_id=STREAM_IDS,
)
def test_a_caller_may_do_what_one_of_the_grants_allows(
    scopes: list[str], details: list[dict[str, Any]], action: Action, stream_id: str
) -> None:
    grants = grants_of(" ".join(f"megaphone:{scope}" for scope in scopes), details)
    caller = Caller("test", DEFAULT, grants, required=Action)

    ours = [one for one in details if one["type"] == DETAIL_TYPE and action.value in one["actions"]]
    named = [pattern for one in ours for pattern in one.get("streams", ["*"])]
    by_stream = any(
        stream_id == pattern or (pattern[-1] == "*" and stream_id.startswith(pattern[:-1]))
        for pattern in named
    )
    by_scope = action.value in scopes
    assert may(caller, action) == (by_scope or bool(ours))
    if action not in (Action.WRITE, Action.READ):  # nothing else is about streams
        by_stream = bool(ours)
    assert may(caller, action, stream_id) == (by_scope or by_stream)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
ANY_DETAIL = st.fixed_dictionaries(
    {}, optional={"type": st.just(DETAIL_TYPE) | JSON, "actions": JSON, "streams": JSON}
)


@given(scope=JSON, details=st.lists(ANY_DETAIL | JSON, max_size=3) | JSON)
def test_every_claim_is_granted_or_malformed(scope: object, details: object) -> None:
    try:
        grants = grants_of(scope, details)
    except MalformedGrant:
        return
    assert all(grant.actions for grant in grants)
