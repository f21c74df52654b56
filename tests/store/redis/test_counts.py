"""Each call to the store that fails counts by its kind."""

import pytest

from megaphone.errors import LimitExceeded, StoreUnavailable
from megaphone.observe.catalogue import METRICS
from megaphone.store.redis import errors
from megaphone.store.redis.counts import KINDS, StoreCounts


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        *((errors.NoAnswer("", kind=kind), kind) for kind in errors.NoAnswer.KINDS),
        (errors.Loading(""), "not_serving"),
        (errors.NoReplicas(""), "not_serving"),
        (StoreUnavailable("slots are on the move"), "not_serving"),
        (errors.OutOfMemory(), "full"),
        (errors.NoPermission("NOPERM"), "refused"),
        (errors.ReplyError("ERR"), "refused"),
        (LimitExceeded("a limit"), "refused"),
    ],
    ids=lambda one: one if isinstance(one, str) else type(one).__name__,
)
def test_a_failure_counts_by_its_kind(error: Exception, kind: str) -> None:
    counts = StoreCounts()
    counts.note_failure(error)
    assert {name: count for name, count in counts.errors.items() if count} == {kind: 1}


def test_what_this_node_ends_itself_is_no_failure_of_the_store() -> None:
    counts = StoreCounts()
    counts.note_failure(errors.NoAnswer("this node closes its store", kind=None))
    assert not any(counts.errors.values())


def test_the_catalogue_has_each_kind() -> None:
    described = METRICS["store_errors_total"].labels["kind"]
    assert all(f"`{kind}`: " in described for kind in KINDS)
