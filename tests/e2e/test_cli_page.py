"""Each example on docs/cli.md prints what the page says, and no command is missing there."""

import re
import sys
from pathlib import Path

import pytest
import typer

from megaphone.cli.exits import Exit
from megaphone.cli.main import app
from megaphone.cli.top import COLUMNS
from tests.support.documented import ROOT, assert_printed, run_session, steps
from tests.support.process import broker_process

PAGE = (ROOT / "docs" / "cli.md").read_text()
FOR_OPERATORS = {"serve", "config", "store", "token", "ctl"}


@pytest.mark.timeout(240)
def test_each_example_prints_what_it_says(tmp_path: Path) -> None:
    examples = list(steps(PAGE))
    with broker_process(tmp_path) as broker:
        here = f"export PATH='{Path(sys.executable).parent}':$PATH HOME='{tmp_path}'"
        commands = [
            f"{here} MEGAPHONE_URL={broker.url} && unset XDG_CONFIG_HOME XDG_STATE_HOME",
            *(example.command for example in examples),
        ]
        _, *printed = run_session(commands, {}, tmp_path, timeout_s=200)
    for example, text in zip(examples, printed, strict=True):
        assert_printed(example, text.replace(broker.url, "http://localhost:3000"))


def test_each_command_has_a_heading() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    headings = re.findall(r"^## `megaphone (\w+)`$", PAGE, re.MULTILINE)
    assert set(headings) == set(commands) - FOR_OPERATORS


def test_each_column_of_top_has_a_row() -> None:
    assert re.findall(r"^\| ([A-Z /]+) \|", PAGE, re.MULTILINE) == [*COLUMNS]


def test_each_exit_code_has_a_row() -> None:
    codes = map(int, re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE))
    assert list(codes) == [code.value for code in Exit]
