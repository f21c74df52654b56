"""The judge of the fault suite finds each kind of violation, and accepts everything allowed."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests.support.checker import (
    Acknowledgement,
    Ending,
    Fault,
    History,
    Kind,
    Outcome,
    Read,
    Seen,
    Verdict,
    Write,
    judge,
)

CAPACITY = 3
WRITER = 0


def written(number: int, *, writer: int = WRITER, at: int | None = None) -> Write:
    """A write that was accepted one tick after it began, before writes with greater numbers."""
    began = 10 * number if at is None else at
    return Write(writer, number, Outcome.TAKEN, event_id(number, writer), began, began + 1)


def event_id(number: int, writer: int = WRITER) -> str:
    return f"{writer}/{number}"


def seen(number: int, *, writer: int = WRITER) -> Seen:
    return Seen(event_id(number, writer), writer, number)


def read(
    *numbers: int,
    at: int = 0,
    ending: Ending = Ending.CLEAN,
    after: int | None = None,
    recovered: bool | None = None,
) -> Read:
    cursor = None if after is None else event_id(after)
    events = [seen(number) for number in numbers]
    return Read(at, cursor, recovered, ending, events, answered=at + 1)


def broken(*numbers: int, at: int = 0, after: int | None = None, recovered: bool = True) -> Read:
    told = None if after is None else recovered
    return read(*numbers, at=at, ending=Ending.BROKEN, after=after, recovered=told)


def acknowledged(number: int, *, began: int, answered: int | None = None) -> Acknowledgement:
    return Acknowledgement(event_id(number), began, answered)


def history(
    kind: Kind,
    writes: int | Sequence[Write],
    *reads: Read,
    acknowledgements: Sequence[Acknowledgement] = (),
) -> History:
    if isinstance(writes, int):
        writes = [written(number) for number in range(writes)]
    return History(kind, CAPACITY, list(writes), list(reads), list(acknowledgements))


def faults(verdict: Verdict) -> list[Fault]:
    return [anomaly.fault for anomaly in verdict.anomalies]


every_kind = pytest.mark.parametrize("kind", list(Kind), ids=lambda kind: kind.value)


# -- What no reader may get


@every_kind
def test_events_delivered_once_and_in_order_are_as_promised(kind: Kind) -> None:
    settled = [acknowledged(1, began=50, answered=51)]
    reads = read(0, 1), read(2, 3, at=60)
    verdict = judge(history(kind, 4, *reads, acknowledgements=settled))
    assert (verdict.taken, verdict.once, verdict.anomalies) == (4, 4, [])


@every_kind
def test_an_event_that_never_comes_is_lost(kind: Kind) -> None:
    settled = [acknowledged(1, began=50, answered=51)]
    verdict = judge(history(kind, 4, read(0, 1), read(3, at=60), acknowledgements=settled))
    assert faults(verdict) == [Fault.LOST]
    assert [anomaly.what for anomaly in verdict.anomalies] == ["0/2"]


@every_kind
def test_the_last_events_of_all_are_lost_if_nothing_comes_any_more(kind: Kind) -> None:
    assert faults(judge(history(kind, 3, read(0), read()))) == [Fault.LOST, Fault.LOST]


@every_kind
def test_an_event_lost_within_one_read_is_found(kind: Kind) -> None:
    assert faults(judge(history(kind, 9, read(0, 1, 2, 4, 5, 6, 7, 8)))) == [Fault.LOST]


@every_kind
def test_events_of_one_writer_in_the_wrong_order_are_found(kind: Kind) -> None:
    batch = [Write(WRITER, n, Outcome.TAKEN, event_id(n), 1, 2) for n in range(3)]
    assert faults(judge(history(kind, batch, read(0, 2, 1)))) == [Fault.OUT_OF_ORDER]


@every_kind
def test_an_event_before_one_that_was_answered_earlier_is_found(kind: Kind) -> None:
    one, other = written(0, writer=1, at=10), written(0, writer=2, at=20)
    swapped = Read(30, events=[seen(0, writer=2), seen(0, writer=1)], ending=Ending.CLEAN)
    assert faults(judge(history(kind, [one, other], swapped))) == [Fault.OUT_OF_ORDER]


@every_kind
def test_events_written_at_the_same_time_may_come_in_any_order(kind: Kind) -> None:
    one, other = written(0, writer=1, at=10), written(0, writer=2, at=10)
    swapped = Read(30, events=[seen(0, writer=2), seen(0, writer=1)], ending=Ending.CLEAN)
    assert judge(history(kind, [one, other], swapped)).anomalies == []


@every_kind
def test_one_event_twice_in_a_read_is_found(kind: Kind) -> None:
    assert faults(judge(history(kind, 2, read(0, 0, 1)))) == [Fault.OUT_OF_ORDER]


def test_a_repetition_in_another_order_is_found() -> None:
    verdict = judge(history(Kind.ACKNOWLEDGING, 3, broken(0, 1, 2), read(0, 2, 1)))
    assert Fault.OUT_OF_ORDER in faults(verdict)


def test_an_event_left_out_of_a_repetition_is_found() -> None:
    verdict = judge(history(Kind.ACKNOWLEDGING, 3, broken(0, 1, 2), read(0, 2)))
    assert faults(verdict) == [Fault.SKIPPED]


@every_kind
def test_an_event_that_nobody_wrote_is_found(kind: Kind) -> None:
    assert faults(judge(history(kind, 1, read(0, 1)))) == [Fault.UNASKED]


@every_kind
def test_an_event_that_was_refused_and_comes_all_the_same_is_found(kind: Kind) -> None:
    refused = Write(WRITER, 1, Outcome.REFUSED, None, 10, 11)
    assert faults(judge(history(kind, [written(0), refused], read(0, 1)))) == [Fault.UNASKED]


@every_kind
def test_an_event_whose_writer_does_not_know_may_come_or_not(kind: Kind) -> None:
    unknown = Write(WRITER, 1, Outcome.UNKNOWN, None, 10, None)
    assert judge(history(kind, [written(0), unknown], read(0, 1))).anomalies == []
    assert judge(history(kind, [written(0), unknown], read(0))).anomalies == []


@every_kind
def test_a_write_that_is_stored_twice_is_found(kind: Kind) -> None:
    twice = Read(99, events=[seen(0), Seen("another", WRITER, 0)], ending=Ending.CLEAN)
    assert Fault.STORED_TWICE in faults(judge(history(kind, 1, twice)))


def test_what_a_reader_gets_again_after_a_loss_that_was_none_is_as_promised() -> None:
    reads = read(0, 1, at=50), read(0, 1, 2, at=60, recovered=False)
    one = replace(history(Kind.PLAIN, 3, *reads), may_repeat=True)
    assert faults(judge(one)) == []
    assert Fault.REPEATED in faults(judge(replace(one, may_repeat=False)))
    missing = replace(one, reads=[read(0, at=50), read(2, at=60, recovered=None)])
    assert faults(judge(missing)) == [Fault.LOST]


STORED_ANEW = Read(
    99, None, recovered=False, ending=Ending.CLEAN, events=[seen(0), Seen("another", WRITER, 1)]
)


def gone_back(writes: Sequence[Write], *reads: Read) -> list[Fault]:
    return faults(judge(replace(history(Kind.PLAIN, writes, *reads), may_go_back=True)))


def test_a_write_that_was_lost_before_its_writer_had_an_answer_may_be_stored_anew() -> None:
    last = replace(written(1), event_id="another")
    assert gone_back([written(0), last], broken(0, 1), STORED_ANEW) == []
    unknown = Write(WRITER, 1, Outcome.UNKNOWN, None, 10, None)
    assert gone_back([written(0), unknown], broken(0, 1), STORED_ANEW) == []


def test_a_write_that_was_stored_anew_although_nothing_was_lost_is_found() -> None:
    last = replace(written(1), event_id="another")
    resumed = replace(STORED_ANEW, recovered=None, events=STORED_ANEW.events[1:])
    assert Fault.STORED_TWICE in gone_back([written(0), last], broken(0, 1), resumed)


def test_a_write_that_was_stored_anew_after_its_writer_had_an_answer_is_found() -> None:
    writes = [written(0), written(1)]
    assert gone_back(writes, broken(0, 1), STORED_ANEW) == [Fault.STORED_TWICE]


def test_a_write_that_is_stored_anew_in_a_store_that_cannot_go_back_is_found() -> None:
    last = replace(written(1), event_id="another")
    never = history(Kind.PLAIN, [written(0), last], broken(0, 1), STORED_ANEW)
    assert Fault.STORED_TWICE in faults(judge(never))


@every_kind
def test_an_event_with_another_id_than_its_writer_was_told_is_found(kind: Kind) -> None:
    renamed = Read(99, events=[Seen("another", WRITER, 0)], ending=Ending.CLEAN)
    assert faults(judge(history(kind, 1, renamed))) == [Fault.STORED_TWICE]


@every_kind
def test_a_repetition_that_was_answered_with_another_id_is_found(kind: Kind) -> None:
    one = replace(written(0), repeated_ids=(event_id(0), "another"))
    assert faults(judge(history(kind, [one], read(0)))) == [Fault.STORED_TWICE]


@every_kind
def test_a_repetition_that_was_answered_with_the_same_id_is_as_promised(kind: Kind) -> None:
    one = replace(written(0), repeated_ids=(event_id(0),))
    assert judge(history(kind, [one], read(0))).anomalies == []


@every_kind
def test_a_part_of_a_call_that_was_written_again_may_come_later(kind: Kind) -> None:
    first = replace(written(0, at=10), ended=30, is_in_sequence=False)
    second = replace(written(1, at=10), ended=30)
    assert judge(history(kind, [first, second], read(1, 0))).anomalies == []


@every_kind
def test_an_event_with_another_body_is_found(kind: Kind) -> None:
    changed = Read(99, events=[replace(seen(0), is_intact=False)], ending=Ending.CLEAN)
    assert faults(judge(history(kind, 1, changed))) == [Fault.CHANGED]


@every_kind
def test_an_event_of_another_channel_is_found(kind: Kind) -> None:
    other = Read(99, events=[replace(seen(0), is_own=False)], ending=Ending.CLEAN)
    assert faults(judge(history(kind, 1, other))) == [Fault.FOREIGN]


@every_kind
def test_a_clean_end_in_the_middle_of_an_event_is_found(kind: Kind) -> None:
    torn = replace(read(0), is_torn=True)
    assert faults(judge(history(kind, 1, torn))) == [Fault.TORN]


@every_kind
def test_a_broken_end_in_the_middle_of_an_event_is_as_promised(kind: Kind) -> None:
    verdict = judge(history(kind, 2, replace(broken(0), is_torn=True), read(1)))
    assert Fault.TORN not in faults(verdict)


# -- Channels whose node is killed


@every_kind
def test_events_behind_all_that_was_delivered_may_die_with_their_node(kind: Kind) -> None:
    died = replace(history(kind, 4, read(0, 1)), died=True)
    verdict = judge(died)
    assert (verdict.lost_with_node, verdict.anomalies) == (2, [])


@every_kind
def test_an_event_before_one_that_was_delivered_does_not_die_with_its_node(kind: Kind) -> None:
    died = replace(history(kind, 4, read(0, 2)), died=True)
    assert faults(judge(died)) == [Fault.LOST]


# -- Acknowledging readers


def test_what_was_not_acknowledged_comes_again() -> None:
    verdict = judge(
        history(
            Kind.ACKNOWLEDGING,
            3,
            broken(0, 1, 2, at=50),
            read(1, 2, at=60),
            acknowledgements=[acknowledged(0, began=51, answered=52)],
        )
    )
    assert (verdict.anomalies, verdict.once, verdict.repeated) == ([], 1, 2)


def test_an_acknowledged_event_that_comes_again_is_found() -> None:
    verdict = judge(
        history(
            Kind.ACKNOWLEDGING,
            3,
            broken(0, 1, 2, at=50),
            read(1, 2, at=60),
            acknowledgements=[acknowledged(1, began=51, answered=52)],
        )
    )
    assert faults(verdict) == [Fault.REPEATED]


def test_an_unacknowledged_event_that_does_not_come_again_is_found() -> None:
    verdict = judge(history(Kind.ACKNOWLEDGING, 3, broken(0, 1, at=50), read(2, at=60)))
    assert faults(verdict) == [Fault.SKIPPED]


@pytest.mark.parametrize("second", [read(1, 2, at=60), read(2, at=60)])
def test_an_acknowledgement_without_an_answer_may_count_or_not(second: Read) -> None:
    unanswered = [acknowledged(1, began=51), acknowledged(0, began=51, answered=52)]
    first = broken(0, 1, at=50)
    verdict = judge(history(Kind.ACKNOWLEDGING, 3, first, second, acknowledgements=unanswered))
    assert verdict.anomalies == []


def test_an_acknowledging_reader_loses_nothing_however_full_the_ring() -> None:
    verdict = judge(history(Kind.ACKNOWLEDGING, 9, broken(0, at=100), read(0, 2, 3, 4, 5, 6, 7, 8)))
    assert faults(verdict) == [Fault.LOST]


def test_an_acknowledging_reader_may_lose_what_it_is_told_of() -> None:
    reads = broken(0, 1, at=50), read(3, recovered=False, at=60)
    verdict = judge(history(Kind.ACKNOWLEDGING, 4, *reads))
    assert (verdict.lost_told, verdict.anomalies) == (1, [])


def test_what_was_acknowledged_does_not_come_again_even_after_a_gap() -> None:
    settled = [acknowledged(1, began=51, answered=52)]
    reads = broken(0, 1, at=50), read(1, 2, recovered=False, at=60)
    verdict = judge(history(Kind.ACKNOWLEDGING, 3, *reads, acknowledgements=settled))
    assert faults(verdict) == [Fault.REPEATED]


# -- Resuming readers


def test_a_read_from_before_the_first_event_misses_none() -> None:
    first = Read(0, "-", True, Ending.CLEAN, [seen(1)])
    assert faults(judge(history(Kind.RESUMING, 2, first))) == [Fault.LOST]


def test_a_resumed_read_starts_after_its_cursor() -> None:
    verdict = judge(history(Kind.RESUMING, 4, broken(0, 1), read(2, 3, after=1, recovered=True)))
    assert (verdict.once, verdict.anomalies) == (4, [])


def test_a_resumed_read_that_starts_before_its_cursor_is_found() -> None:
    verdict = judge(history(Kind.RESUMING, 4, broken(0, 1), read(1, 2, 3, after=1, recovered=True)))
    assert faults(verdict) == [Fault.REPEATED]


def test_a_resumed_read_that_passes_over_a_known_event_is_found() -> None:
    reads = broken(0, 1, 2), read(2, 3, after=0, recovered=True)
    assert faults(judge(history(Kind.RESUMING, 4, *reads))) == [Fault.SKIPPED]


def test_a_silent_gap_is_found_however_full_the_ring() -> None:
    reads = broken(0, at=200), read(5, 6, 7, 8, after=0, recovered=True, at=210)
    assert faults(judge(history(Kind.RESUMING, 9, *reads))) == [Fault.LOST] * 4


def test_a_gap_that_was_told_is_no_anomaly() -> None:
    reads = broken(0, at=200), read(5, 6, 7, 8, after=0, recovered=False, at=210)
    verdict = judge(history(Kind.RESUMING, 9, *reads))
    assert (verdict.lost_told, verdict.anomalies) == (4, [])


def test_a_gap_is_not_excused_by_what_was_told_of_another() -> None:
    reads = [
        broken(0, at=200),
        broken(2, 3, after=0, recovered=False, at=210),
        read(5, after=3, recovered=True, at=220),
    ]
    verdict = judge(history(Kind.RESUMING, 6, *reads))
    assert verdict.lost_told == 1
    assert [anomaly.what for anomaly in verdict.anomalies] == ["0/4"]


def test_the_first_read_of_a_resuming_reader_is_a_plain_one() -> None:
    reads = broken(at=200), read(2, 3, 4, at=210), read(after=4, recovered=True, at=220)
    verdict = judge(history(Kind.RESUMING, 5, *reads))
    assert (verdict.lost_beyond_ring, verdict.anomalies) == (2, [])


# -- Plain readers


def test_a_plain_reader_gets_again_what_a_broken_read_was_sent() -> None:
    verdict = judge(history(Kind.PLAIN, 3, broken(0, 1), read(0, 1, 2)))
    assert (verdict.once, verdict.repeated, verdict.anomalies) == (1, 2, [])


def test_a_repetition_after_a_clean_end_is_found() -> None:
    assert faults(judge(history(Kind.PLAIN, 3, read(0, 1), read(1, 2)))) == [Fault.REPEATED]


def test_a_repetition_from_before_what_is_kept_is_found() -> None:
    verdict = judge(history(Kind.PLAIN, 5, broken(0, 1, 2, 3), read(0, 1, 2, 3, 4)))
    assert faults(verdict) == [Fault.REPEATED]


def test_a_repetition_of_a_read_before_the_broken_one_is_found() -> None:
    verdict = judge(history(Kind.PLAIN, 3, read(0), broken(1), read(0, 1, 2)))
    assert faults(verdict) == [Fault.REPEATED]


def test_a_repetition_that_was_cut_short_by_a_clean_end_goes_on() -> None:
    reads = broken(0, 1, 2), read(0, 1), read(2, 3)
    assert judge(history(Kind.PLAIN, 4, *reads)).anomalies == []


def test_a_repetition_that_was_broken_begins_anew() -> None:
    reads = broken(0, 1, 2), broken(0, 1), broken(), read(0, 1, 2, 3)
    assert judge(history(Kind.PLAIN, 4, *reads)).anomalies == []


def test_a_loss_beyond_what_is_kept_is_allowed() -> None:
    verdict = judge(history(Kind.PLAIN, 6, broken(0, at=200), read(3, 4, 5, at=210)))
    assert (verdict.lost_beyond_ring, verdict.anomalies) == (2, [])


def test_a_loss_with_too_few_events_behind_it_is_found() -> None:
    verdict = judge(history(Kind.PLAIN, 4, broken(0, at=200), read(3, at=210)))
    assert verdict.lost_beyond_ring == 0
    assert faults(verdict) == [Fault.LOST, Fault.LOST]


def test_a_broken_read_may_go_on_until_the_next_is_answered() -> None:
    """The node may have sent all these events before it noticed that the reader had left."""
    late = [written(number, at=205) for number in range(3, 6)]
    writes = [*(written(number) for number in range(3)), *late]
    waited_for = replace(read(3, 4, 5, at=200), answered=210)
    verdict = judge(history(Kind.PLAIN, writes, broken(0, at=100), waited_for))
    assert (verdict.lost_beyond_ring, verdict.anomalies) == (2, [])


def test_a_read_that_was_not_answered_does_not_say_that_the_one_before_is_over() -> None:
    late = [written(number, at=205) for number in range(3, 6)]
    writes = [*(written(number) for number in range(3)), *late]
    unanswered = replace(broken(at=200), answered=None)
    verdict = judge(
        history(Kind.PLAIN, writes, broken(0, at=100), unanswered, read(3, 4, 5, at=210))
    )
    assert (verdict.lost_beyond_ring, verdict.anomalies) == (2, [])


def test_events_that_were_not_begun_when_the_read_broke_excuse_no_loss() -> None:
    verdict = judge(history(Kind.PLAIN, 6, broken(0, at=15), read(2, 3, 4, 5, at=25)))
    assert faults(verdict) == [Fault.LOST]


def test_a_loss_after_a_clean_end_is_found() -> None:
    verdict = judge(history(Kind.PLAIN, 9, read(0, at=200), read(2, 3, 4, 5, 6, 7, 8, at=210)))
    assert faults(verdict) == [Fault.LOST]


def test_a_loss_at_the_end_of_a_window_is_counted_apart() -> None:
    left = read(0, at=200, ending=Ending.BROKEN_AT_WINDOW_END)
    verdict = judge(history(Kind.PLAIN, 3, left, read(2, at=210)))
    assert (verdict.lost_at_window_end, verdict.anomalies) == (1, [])


def test_what_may_be_too_old_to_be_sent_again_may_be_lost() -> None:
    reads = broken(0, at=200), replace(read(2, at=210), asked_at=11.0)
    verdict = judge(replace(history(Kind.PLAIN, 3, *reads), redelivery_window_s=10.0))
    assert (verdict.lost_beyond_age, verdict.anomalies) == (1, [])
    assert faults(judge(replace(history(Kind.PLAIN, 3, *reads), redelivery_window_s=12.0))) == [
        Fault.LOST
    ]


def test_a_repetition_is_not_longer_than_the_most_that_a_node_keeps() -> None:
    reads = broken(0, 1, 2, 3), read(0, 1, 2, 3, 4)
    verdict = judge(replace(history(Kind.PLAIN, 5, *reads), largest_capacity=4))
    assert verdict.anomalies == []
