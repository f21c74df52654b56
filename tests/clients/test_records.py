"""The judge sees each fault of a client library, and excuses what is allowed."""

from tests.clients.driver import GAP, ClientError, Event, Gap, Reading
from tests.clients.records import Records

WRITER = 0


def written(records: Records, count: int) -> list[Event]:
    """Write events that are all taken. Returns: the events as a perfect client shows them."""
    events = []
    for number in range(count):
        body, began = records.body(WRITER, number), records.tick()
        records.settle(WRITER, number, began, f"id-{number}")
        events.append(Event(f"id-{number}", "s", body, None))
    return events


def reading(*items: Event | Gap) -> Reading:
    return Reading("r", list(items))


def error(name: str) -> ClientError:
    return ClientError({"class": name, "code": None, "message": ""})


def test_every_event_once_and_in_order_is_as_promised() -> None:
    records = Records()
    events = written(records, 5)
    assert records.faults_of_life(reading(*events)) == []
    assert records.are_all_in(reading(*events))


def test_a_lost_event_is_found() -> None:
    records = Records()
    events = written(records, 5)
    assert records.faults_of_life(reading(*events[:2], *events[3:]))
    assert records.faults_of_life(reading(*events[:4]))
    assert not records.are_all_in(reading(*events[:4]))


def test_a_reported_gap_excuses_what_is_missing_there() -> None:
    records = Records()
    events = written(records, 5)
    assert not records.faults_of_life(reading(*events[:2], GAP, *events[3:]))
    assert records.faults_of_life(reading(*events[:1], *events[2:3], GAP, *events[3:]))


def test_an_event_shown_twice_is_found() -> None:
    records = Records()
    events = written(records, 5)
    assert records.faults_of_life(reading(*events[:3], *events[2:]))
    assert records.faults_of_life(reading(*events[:3], GAP, *events[2:]))


def test_the_wrong_order_is_found() -> None:
    records = Records()
    one, two, three = written(records, 3)
    assert records.faults_of_life(reading(one, three, two))


def test_a_changed_body_is_found() -> None:
    records = Records()
    one, two = written(records, 2)
    assert records.faults_of_life(reading(one, Event(two.id, "s", [WRITER, 1, "other"], None)))


def test_a_refused_event_that_comes_is_found_and_one_of_unknown_outcome_may_come() -> None:
    for name, is_fault in (("WriteTimeout", True), ("OutcomeUnknown", False)):
        records = Records()
        body, began = records.body(WRITER, 0), records.tick()
        records.settle(WRITER, 0, began, error(name))
        found = records.faults_of_life(reading(Event("id", "s", body, None)))
        assert bool(found) is is_fault
        assert not records.faults_of_life(reading())


def test_a_channel_that_died_excuses_only_its_last_events() -> None:
    records = Records()
    events = written(records, 4)
    assert not records.faults_of_life(reading(*events[:2]), died=True)
    assert records.faults_of_life(reading(*events[:1], *events[2:]), died=True)


def test_a_next_life_may_repeat_and_must_not_pass_over() -> None:
    records = Records()
    events = written(records, 6)
    first = reading(*events[:3])
    assert not records.faults_of_lives(first, reading(*events[1:]))
    assert not records.faults_of_lives(first, reading(*events[3:]))
    assert records.faults_of_lives(first, reading(*events[4:]))


def test_a_next_life_with_a_cursor_must_not_repeat_either() -> None:
    records = Records()
    events = written(records, 6)
    first = reading(*events[:3])
    assert not records.faults_of_lives_with_cursor(first, reading(*events[3:]))
    assert records.faults_of_lives_with_cursor(first, reading(*events[2:]))
    assert records.faults_of_lives_with_cursor(first, reading(*events[4:]))
