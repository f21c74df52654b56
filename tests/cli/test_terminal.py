"""What commands show on a terminal."""

from tests.cli.conftest import User


def test_events_are_shown_for_people(at_room: User) -> None:
    at_room.run("write", "@room", "chat", '{"text": "hello"}')
    shown = at_room.on_terminal("tail", "@room", "-n", "1", "--color", "never")
    clock, stream, body = shown.strip().split(maxsplit=2)
    assert len(clock) == len("12:00:00.000")
    assert (stream, body) == ("chat", '{"text": "hello"}')


def test_streams_have_colours_unless_nobody_wants_any(at_room: User) -> None:
    at_room.run("write", "@room", "chat", "1")
    look = ("tail", "@room", "--no-follow", "--after", "-")
    assert "\x1b[" in at_room.on_terminal(*look)
    assert "\x1b[" not in at_room.on_terminal(*look, NO_COLOR="1")
    assert "\x1b[" in at_room.on_terminal(*look, "--color", "always", NO_COLOR="1")


def test_bodies_and_streams_cannot_steer_the_terminal(at_room: User) -> None:
    at_room.run("write", "@room", "a\u202eb", '"\u009b2J \u202e \u007f"')
    shown = at_room.on_terminal("tail", "@room", "-n", "1", "--color", "never")
    assert "a\\u202eb" in shown
    assert '"\\u009b2J \\u202e \\u007f"' in shown


def test_a_body_that_does_not_fit_has_lines_of_its_own(at_room: User) -> None:
    at_room.run("write", "@room", "chat", '{"text": "hello", "number": 1}')
    shown = at_room.on_terminal("tail", "@room", "-n", "1", "--color", "never", columns=40)
    assert shown.splitlines()[1:] == ["{", '  "text": "hello",', '  "number": 1', "}"]


def test_a_new_channel_is_shown_for_people(user: User) -> None:
    first, second = user.on_terminal("create").splitlines()
    assert first.startswith("producer  ")
    assert second.startswith("consumer  ")


def test_the_headings_of_help_are_bold(user: User) -> None:
    assert "\x1b[1mNodes:\x1b[0m" in user.on_terminal("--help")
    assert "\x1b[1mOptions:\x1b[0m" in user.on_terminal("write", "--help")
