"""docs/security.md says who may make each call, and the tests that its checklist names exist."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from megaphone.model import Action
from megaphone.rest.operations import OPERATIONS
from megaphone.rpc.callers import ACTIONS

ROOT = Path(__file__).parents[1]
ROWS = 29
PAGE = (ROOT / "docs" / "security.md").read_text()
ROW = re.compile(r"^\| (.+?) \| (.+?) \| (.+?) \|$", re.MULTILINE)
CHECKLIST = ROW.findall(PAGE.partition("## The checklist")[2])
THREATS = {threat: (defence, proof) for threat, defence, proof in CHECKLIST[2:]}
NAMED = re.compile(r"`(tests/[a-z_/]+\.py)::(test_\w+)`")


@cache
def names_in(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text())
    return {
        one.name for one in tree.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)
    }


@pytest.mark.parametrize("action", Action)
def test_the_page_names_the_calls_of_each_action(action: Action) -> None:
    table = PAGE.partition("## Calls, and who may make them")[2].partition("\n## ")[0]
    [calls] = [row[0] for row in ROW.findall(table) if row[2] == f"`{action}`"]
    named = set(re.findall(r"`(?:[A-Z]+ )?([^ `]+)`", calls))
    methods = {path.rpartition("/")[2] for path, one in ACTIONS.items() if one is action}
    routes = {
        f"/{path.split('/')[1]}" for (_, path), one in OPERATIONS.items() if one.action is action
    }
    assert named == methods | routes


def test_the_checklist_is_whole() -> None:
    assert len(THREATS) == ROWS


@pytest.mark.parametrize("threat", THREATS)
def test_each_row_has_its_proof_or_says_why_not(threat: str) -> None:
    defence, proof = THREATS[threat]
    named = NAMED.findall(proof)
    if not named:
        assert (defence.partition(":")[0], proof) == ("not defended", "no test")
    assert NAMED.sub("", proof).strip(" ,") in ("", "no test")
    for file, test in named:
        assert test in names_in(file), f"{file} has no {test}"
