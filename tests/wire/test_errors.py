"""The table of errors covers every class, and a client gets the class that the broker raised."""

from operator import attrgetter

import grpc
import pytest

from megaphone.errors import (
    BadRequest,
    LimitExceeded,
    MegaphoneError,
    NodeUnauthenticated,
    PermissionDenied,
    RateLimited,
    TokenExpired,
    Unauthenticated,
)
from megaphone.rest.connection.answers import error_answer
from megaphone.store.redis.errors import NoReplicas, OutOfMemory
from megaphone.wire.errors import (
    INTERNAL_GRPC_STATUS,
    TABLE,
    challenge_of,
    error_from,
    limit_headers,
    limit_of,
    row_of,
    whole_seconds,
)


def concrete(kind: type[MegaphoneError] = MegaphoneError) -> set[type[MegaphoneError]]:
    """Every class with a code of its own. Those of a store share the code of their parent."""
    below = {found for child in kind.__subclasses__() for found in {child, *concrete(child)}}
    return {found for found in below if "code" in vars(found)}


BY_CODE = sorted(concrete(), key=attrgetter("code"))


def test_every_class_has_a_row_and_every_row_a_code_of_its_own() -> None:
    assert concrete() == {row.error for row in TABLE}
    assert len({row.error.code for row in TABLE}) == len(TABLE)


@pytest.mark.parametrize("kind", BY_CODE)
def test_a_class_is_rebuilt_from_its_code(kind: type[MegaphoneError]) -> None:
    rebuilt = error_from(kind.code, "as told")
    assert type(rebuilt) is kind
    assert str(rebuilt) == "as told"


def test_an_unknown_code_rebuilds_nothing() -> None:
    assert error_from("INTERNAL_SERVER_ERROR", "x") is None


def test_every_status_exists_in_both_protocols() -> None:
    for row in TABLE:
        assert grpc.StatusCode[row.grpc_status]
        assert 400 <= row.http_status < 600
    assert grpc.StatusCode[INTERNAL_GRPC_STATUS]


@pytest.mark.parametrize("kind", BY_CODE)
def test_http_asks_to_come_back_exactly_where_that_helps(kind: type[MegaphoneError]) -> None:
    answer = error_answer(kind("as told"))
    assert answer.status == row_of(kind("as told")).http_status
    assert ("Retry-After" in answer.headers) == (kind.retry_after_s is not None)


def test_an_error_of_a_store_in_redis_is_told_as_its_parent() -> None:
    for error in (NoReplicas("NOREPLICAS x"), OutOfMemory("OOM x")):
        row = row_of(error)
        assert isinstance(error, row.error)
        assert error_answer(error).status == row.http_status


@pytest.mark.parametrize(
    ("error", "challenge"),
    [
        (Unauthenticated("x"), 'Bearer realm="megaphone"'),
        (
            Unauthenticated("x", was_presented=True),
            'Bearer realm="megaphone", error="invalid_token"',
        ),
        (TokenExpired(), 'Bearer realm="megaphone", error="invalid_token"'),
        (
            PermissionDenied("x", action="create"),
            'Bearer realm="megaphone", error="insufficient_scope", scope="megaphone:create"',
        ),
        (PermissionDenied("x"), None),
        (NodeUnauthenticated("x"), "Megaphone-Node"),
    ],
)
def test_http_says_which_proof_is_wanted(error: MegaphoneError, challenge: str | None) -> None:
    assert challenge_of(error) == challenge
    assert error_answer(error).headers.get("WWW-Authenticate") == challenge


@pytest.mark.parametrize("kind", BY_CODE)
def test_every_401_says_which_proof_is_wanted(kind: type[MegaphoneError]) -> None:
    is_401 = row_of(kind("as told")).http_status == 401
    assert (challenge_of(kind("as told")) is not None) == is_401


@pytest.mark.parametrize(
    ("error", "limit", "policy"),
    [
        (RateLimited("", retry_after_s=0.01, limit="a", per_s=500), '"a";r=0;t=1', '"a";q=500;w=1'),
        (RateLimited("", retry_after_s=2.5, limit="a", per_s=0.4), '"a";r=0;t=3', '"a";q=1;w=3'),
        (LimitExceeded("", limit="a", most=0), '"a";r=0;t=10', '"a";q=0'),
    ],
)
def test_a_limit_is_described_in_headers(error: MegaphoneError, limit: str, policy: str) -> None:
    assert limit_headers(error) == {"RateLimit": limit, "RateLimit-Policy": policy}


def test_a_limit_without_a_number_has_no_headers() -> None:
    for error in (RateLimited(""), LimitExceeded(""), BadRequest("")):
        assert limit_headers(error) == {}
        assert limit_of(error) is None
    assert limit_of(LimitExceeded("", limit="buffered_bytes")) == "buffered_bytes"


def test_a_delay_is_told_in_whole_seconds() -> None:
    assert [whole_seconds(one) for one in (0.0, 0.001, 1.0, 1.001, 9.9)] == [1, 1, 1, 2, 10]
