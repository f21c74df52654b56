"""Which trace contexts count."""

import pytest

from megaphone.core.traces import UNTRACED, sampled

IDS = "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331"


@pytest.mark.parametrize("flags", ["01", "03", "ff"])
def test_a_sampled_context_stays_as_it_is(flags: str) -> None:
    assert sampled(f"00-{IDS}-{flags}") == f"00-{IDS}-{flags}"


@pytest.mark.parametrize("end", ["", "-", "-more-01"])
def test_a_later_version_means_what_version_00_means(end: str) -> None:
    assert sampled(f"cc-{IDS}-05{end}") == f"00-{IDS}-01"


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "nonsense",
        f"00-{IDS}",
        f"00-{IDS}-00",
        f"00-{IDS}-02",
        f"00-{IDS}-1",
        f"00-{IDS}-01-",
        f"00-{IDS}-01 ",
        f"00-{IDS}-01\n",
        f"ff-{IDS}-01",
        f"cc-{IDS}-010",
        f"00-{IDS.upper()}-01",
        f"00-{'0' * 32}-b7ad6b7169203331-01",
        f"00-0af7651916cd43dd8448eb211c80319c-{'0' * 16}-01",
        f"00-{IDS}-01" * 1_000,
    ],
)
def test_anything_else_is_no_context(text: str | None) -> None:
    assert sampled(text) is None


def test_without_spans_contexts_are_passed_on() -> None:
    assert not UNTRACED.makes_spans
    with UNTRACED.sending("http") as sending:
        assert not sending.has_spans
        assert sending.trace_of(f"00-{IDS}-01") == f"00-{IDS}-01"
        assert sending.trace_of("nonsense") is None
        sending.note(None, failure="TIMEOUT")
    assert UNTRACED.receive([], "abcdabcd") is None
