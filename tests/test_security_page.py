"""The tests that the checklist of docs/security.md names exist."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROWS = 28
PAGE = (ROOT / "docs" / "security.md").read_text()
CHECKLIST = re.findall(
    r"^\| (.+?) \| (.+?) \| (.+?) \|$", PAGE.partition("## The checklist")[2], re.MULTILINE
)
THREATS = {threat: (defence, proof) for threat, defence, proof in CHECKLIST[2:]}
NAMED = re.compile(r"`(tests/[a-z_/]+\.py)::(test_\w+)`")


@cache
def names_in(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text())
    return {
        one.name for one in tree.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)
    }


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
