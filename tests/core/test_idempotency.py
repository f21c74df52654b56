"""The idempotency keys of a channel: how long it knows each, and which ones replication copies."""

from megaphone.core.budget import KEY_BYTES, Budget
from megaphone.core.idempotency import MOST_KEYS, Key, Keys

WINDOW_S = 60.0


class Waiting:
    """Stands for an event that waits for room."""


def make(budget: Budget | None = None) -> Keys[Waiting]:
    return Keys(WINDOW_S, budget or Budget())


def test_a_key_is_answered_with_its_event_within_the_window() -> None:
    keys = make()
    assert keys.answer("r", 0.0) is None
    keys.remember("r", "e", at=0.0, offset=1)
    assert keys.answer("r", WINDOW_S) == "e"
    assert keys.answer("r", WINDOW_S + 0.1) is None


def test_a_key_is_known_while_its_event_waits_and_then_for_the_window() -> None:
    keys, waiting = make(), Waiting()
    keys.remember("r", waiting, at=0.0, offset=0)
    assert keys.answer("r", 1_000.0) is waiting
    keys.remember("r", "e", at=1_000.0, offset=1)
    assert keys.answer("r", 1_000.0 + WINDOW_S) == "e"


def test_a_key_that_is_too_old_is_forgotten_though_an_older_one_waits() -> None:
    keys, waiting = make(), Waiting()
    keys.remember("waits", waiting, at=0.0, offset=0)
    keys.remember("r", "e", at=0.0, offset=1)
    assert keys.answer("r", WINDOW_S + 0.1) is None
    assert keys.answer("waits", WINDOW_S + 0.1) is waiting


def test_the_oldest_of_too_many_keys_is_forgotten() -> None:
    keys = make()
    for number in range(MOST_KEYS + 1):
        keys.remember(f"r{number}", "e", at=0.0, offset=1)
    assert keys.answer("r0", 0.0) is None
    assert keys.answer("r1", 0.0) == "e"


def test_keys_count_until_they_are_forgotten() -> None:
    budget = Budget()
    keys = make(budget)
    keys.remember("r", "e", at=0.0, offset=1)
    keys.remember("r", "f", at=0.0, offset=2)
    assert budget.used == KEY_BYTES + 1
    keys.remember("long", "g", at=0.0, offset=3)
    keys.forget("r")
    keys.forget("r")
    assert budget.used == KEY_BYTES + 4
    keys.clear()
    assert budget.used == 0


def test_what_another_node_took_is_learned_unless_it_is_known_or_too_old() -> None:
    keys = make()
    keys.learn("r", "e", at=40.0, offset=1, now=100.0)
    keys.learn("r", "other", at=100.0, offset=2, now=100.0)
    keys.learn("old", "e", at=39.9, offset=1, now=100.0)
    assert keys.answer("r", 100.0) == "e"
    assert keys.answer("old", 100.0) is None


def test_keys_after_an_offset_come_in_the_order_of_their_events() -> None:
    keys = make()
    for offset, name in enumerate("abc", 1):
        keys.remember(name, f"e{offset}", at=0.0, offset=offset)
    assert keys.after(1, 0.0) == [("b", Key("e2", 0.0, 2)), ("c", Key("e3", 0.0, 3))]
    assert keys.after(3, 0.0) == []


def test_keys_that_wait_or_are_too_old_are_told_to_nobody() -> None:
    keys = make()
    keys.remember("old", "e1", at=0.0, offset=1)
    keys.remember("r", "e2", at=50.0, offset=2)
    keys.remember("waits", Waiting(), at=50.0, offset=2)
    assert keys.after(0, 100.0) == [("r", Key("e2", 50.0, 2))]
