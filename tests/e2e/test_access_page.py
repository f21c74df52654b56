"""Each example on docs/access.md prints what the page says, with the settings of the page."""

import re
from pathlib import Path

from megaphone.config import load
from megaphone.model import Action
from tests.support.documented import ROOT, assert_printed, run_session, steps
from tests.support.process import MEGAPHONE, broker_process

PAGE = (ROOT / "docs" / "access.md").read_text()
BEFORE_THE_START = 2
"""So many examples make the keys and the token that the broker is started with."""


def block(language: str) -> str:
    [found] = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    return str(found)


def test_each_example_prints_what_it_says(tmp_path: Path) -> None:
    (tmp_path / "megaphone.toml").write_text(block("toml"))
    examples = list(steps(PAGE))
    commands = [example.command for example in examples]
    programs = {".venv/bin/": f"{Path(MEGAPHONE).parent}/"}
    run_session(commands[:BEFORE_THE_START], programs, tmp_path)
    with broker_process(tmp_path) as broker:
        actual = programs | {"localhost:3000": broker.url.removeprefix("http://")}
        printed = run_session(commands[BEFORE_THE_START:], actual, tmp_path)
    for example, text in zip(examples[BEFORE_THE_START:], printed, strict=True):
        assert_printed(example, text)


def test_each_action_has_a_row() -> None:
    rows = re.findall(r"^\| `(\w+)` \| .* \| .* \|$", PAGE, re.MULTILINE)
    assert rows == [action.value for action in Action]


def test_the_settings_are_settings(tmp_path: Path) -> None:
    (tmp_path / "megaphone.toml").write_text(block("toml"))
    settings = load(tmp_path, {}).settings
    for name in re.findall(r"`(jwks_url|public_key_file|secret|tenant_claim)`", PAGE):
        assert hasattr(settings.auth.issuers["shop"], name)
