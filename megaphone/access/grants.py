"""Grants: what the claims of a token allow. No I/O, and no clock.

Two claims grant. `scope` (RFC 8693) has words such as `megaphone:write`, and each allows its action
on every stream. `authorization_details` (RFC 9396) has objects, and those of our type allow their
actions on some streams:

    {"type": "urn:megaphone:authorization", "actions": ["write"], "streams": ["orders.*"]}

Every grant adds to the others. A token with neither claim allows nothing.
"""

from collections.abc import Iterable, Mapping
from typing import Final

from megaphone.core.access import Grant
from megaphone.model import Action

DETAIL_TYPE: Final = "urn:megaphone:authorization"
SCOPE_PREFIX: Final = "megaphone:"
MAX_DETAILS: Final = 100
"""How many details of any type a token may have."""

ACTIONS: Final[Mapping[str, Action]] = {action.value: action for action in Action}
MEMBERS: Final = frozenset({"type", "actions", "streams"})


class MalformedGrant(Exception):
    """A claim that grants has a form that this broker does not understand, so the token is not
    valid here. The text is for the log, and contains nothing of the token."""


def grants_of(scope: object, details: object) -> list[Grant]:
    """Return what the claims `scope` and `authorization_details` grant. None means no such claim.

    Scopes of other services, details of other types, and actions that this broker does not know
    are ignored.

    Raises: MalformedGrant, if a claim or a detail of our type is malformed, or if there are more
        than `MAX_DETAILS` details.
    """
    grants = [Grant(scope_actions(scope)), *detail_grants(details)]
    return [grant for grant in grants if grant.actions]


def scope_actions(scope: object) -> frozenset[Action]:
    """Return the actions in a `scope`, a text of words with spaces between them."""
    if scope is None:
        return frozenset()
    if not isinstance(scope, str):
        raise MalformedGrant("scope is not a text")
    ours = (word for word in scope.split(" ") if word.startswith(SCOPE_PREFIX))
    return known_actions(word.removeprefix(SCOPE_PREFIX) for word in ours)


def known_actions(names: Iterable[str]) -> frozenset[Action]:
    return frozenset(ACTIONS[name] for name in names if name in ACTIONS)


def detail_grants(details: object) -> list[Grant]:
    """Return the grants in `authorization_details`, one for each detail of our type."""
    if details is None:
        return []
    if not isinstance(details, list):
        raise MalformedGrant("authorization_details is not a list")
    if len(details) > MAX_DETAILS:
        raise MalformedGrant(f"authorization_details has more than {MAX_DETAILS} members")
    return [detail_grant(detail) for detail in details if type_of(detail) == DETAIL_TYPE]


def type_of(detail: object) -> str:
    """Return the type of a detail. RFC 9396 requires that a detail has one."""
    if isinstance(detail, dict) and isinstance(kind := detail.get("type"), str):
        return kind
    raise MalformedGrant("a member of authorization_details is not an object with a type")


def detail_grant(detail: Mapping[str, object]) -> Grant:
    """Return what one detail of our type grants."""
    if detail.keys() - MEMBERS:
        # The issuer may have meant it as a limit, and without it the grant would be too large.
        raise MalformedGrant("a detail has a member other than type, actions and streams")
    actions = texts(detail, "actions")
    if "streams" not in detail:
        return Grant(known_actions(actions))
    streams = texts(detail, "streams")
    if not all(map(is_pattern, streams)):
        raise MalformedGrant("a stream of a detail is empty, or has a * that is not at its end")
    return Grant(known_actions(actions), tuple(streams))


def texts(detail: Mapping[str, object], name: str) -> list[str]:
    value = detail.get(name)
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return value
    raise MalformedGrant(f"a detail has no list of texts as its {name}")


def is_pattern(text: str) -> bool:
    """Return whether a text is a stream id, or the beginning of stream ids and a final `*`."""
    return text != "" and "*" not in text[:-1]
