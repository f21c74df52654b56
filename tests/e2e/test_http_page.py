"""Each example on docs/http.md prints what the page says, and no route is missing there."""

import re
from pathlib import Path
from typing import Any

from megaphone.rest.admin import AdminApi
from megaphone.rest.openapi import path_of
from megaphone.rest.operations import OPERATIONS
from megaphone.rest.public import public_routes
from tests.support.documented import ROOT, assert_printed, run_session, steps
from tests.support.process import broker_process

VARIABLE = re.compile(r"\{(\w+)\}")
NAMES = {
    "address": "consumer",
    "consumer_address": "consumer",
    "producer_address": "producer",
    "stream_id": "stream",
}
"""How the page names variables of paths, if otherwise than the routes do."""
PAGE = (ROOT / "docs" / "http.md").read_text()


def test_each_example_prints_what_it_says(tmp_path: Path) -> None:
    examples = list(steps(PAGE))
    with broker_process(tmp_path) as broker:
        actual = {
            "localhost:3000": broker.url.removeprefix("http://"),
            "/run/megaphone.sock": str(tmp_path / "megaphone.sock"),
        }
        commands = [example.command for example in examples]
        printed = run_session(commands, actual, tmp_path)
    for example, text in zip(examples, printed, strict=True):
        assert_printed(example, text)


def test_each_route_has_an_example() -> None:
    nobody: Any = None  # since nobody calls the routes
    public = public_routes(nobody, nobody, nobody, nobody, with_pages=True)
    routes = public + AdminApi(nobody).routes()
    headings = {
        f"{route.method} {VARIABLE.sub(as_on_the_page, path_of(route))}" for route in routes
    }
    assert set(re.findall(r"^### `(\w+ /\S*)`$", PAGE, re.MULTILINE)) == headings


def test_each_parameter_of_a_query_is_in_a_table() -> None:
    named = {
        parameter.name
        for row in OPERATIONS.values()
        for parameter in row.parameters
        if parameter.place == "query"
    }
    assert set(re.findall(r"^\| `(\w+)=", PAGE, re.MULTILINE)) == named


def as_on_the_page(variable: re.Match[str]) -> str:
    return f"{{{NAMES.get(variable[1], variable[1])}}}"
