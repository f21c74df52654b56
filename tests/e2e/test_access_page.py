"""Each example on docs/access.md prints what the page says, with the settings of the page."""

import re
from pathlib import Path

from megaphone.config import load
from megaphone.model import Action
from tests.support.documented import ROOT, assert_printed, run_session, steps
from tests.support.process import MEGAPHONE, broker_process

PAGE = (ROOT / "docs" / "access.md").read_text()
WITH_TOKENS, WITH_CERTIFICATES = PAGE.split("\n## Client certificates\n")
TLS_PAGE = (ROOT / "docs" / "tls.md").read_text()
BEFORE_THE_START = 2
"""So many examples make the keys and the token that the broker is started with."""
PROGRAMS = {".venv/bin/": f"{Path(MEGAPHONE).parent}/"}


def settings_of(part: str) -> str:
    [found] = re.findall(r"^```toml\n(.*?)^```$", part, re.DOTALL | re.MULTILINE)
    return str(found)


def test_each_example_with_a_token_prints_what_it_says(tmp_path: Path) -> None:
    (tmp_path / "megaphone.toml").write_text(settings_of(WITH_TOKENS))
    examples = list(steps(WITH_TOKENS))
    commands = [example.command for example in examples]
    run_session(commands[:BEFORE_THE_START], PROGRAMS, tmp_path)
    with broker_process(tmp_path) as broker:
        actual = PROGRAMS | {"localhost:3000": broker.url.removeprefix("http://")}
        printed = run_session(commands[BEFORE_THE_START:], actual, tmp_path)
    for example, text in zip(examples[BEFORE_THE_START:], printed, strict=True):
        assert_printed(example, text)


def test_the_example_with_a_certificate_prints_what_it_says(tmp_path: Path) -> None:
    made = [step.command.partition("\ncurl")[0] for step in steps(TLS_PAGE)]
    run_session([command for command in made if "openssl" in command], {}, tmp_path)
    (tmp_path / "megaphone.toml").write_text(settings_of(WITH_CERTIFICATES))
    [example] = steps(WITH_CERTIFICATES)
    with broker_process(tmp_path) as broker:
        actual = {"localhost:3000": f"localhost:{broker.url.rpartition(':')[2]}"}
        [printed] = run_session([example.command], actual, tmp_path)
    assert_printed(example, printed)


def test_each_action_has_a_row() -> None:
    rows = re.findall(r"^\| `(\w+)` \| .* \| .* \|$", PAGE, re.MULTILINE)
    assert rows == [action.value for action in Action]


def test_the_settings_are_settings(tmp_path: Path) -> None:
    (tmp_path / "megaphone.toml").write_text(settings_of(WITH_TOKENS))
    settings = load(tmp_path, {}).settings
    for name in re.findall(r"`(jwks_url|public_key_file|secret|tenant_claim)`", PAGE):
        assert hasattr(settings.auth.issuers["shop"], name)
