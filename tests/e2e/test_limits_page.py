"""What docs/limits.md says is so: its commands print what it says, and it names each limit."""

import re
from dataclasses import fields
from pathlib import Path

from megaphone.config import load
from megaphone.core.peers import PeerLimits
from megaphone.settings import TenantLimits
from tests.support.documented import FENCE, ROOT, assert_printed, run_session, steps
from tests.support.process import broker_process

PAGE = (ROOT / "docs" / "limits.md").read_text()
SETTINGS = [text for language, text in FENCE.findall(PAGE) if language == "toml"]


def test_each_example_prints_what_it_says(tmp_path: Path) -> None:
    (tmp_path / "megaphone.toml").write_text(SETTINGS[0])
    examples = list(steps(PAGE))
    with broker_process(tmp_path) as broker:
        actual = {"localhost:3000": broker.url.removeprefix("http://")}
        printed = run_session([one.command for one in examples], actual, tmp_path)
    for example, text in zip(examples, printed, strict=True):
        assert_printed(example, text)


def test_the_settings_are_settings(tmp_path: Path) -> None:
    (tmp_path / "megaphone.toml").write_text(SETTINGS[1])
    settings = load(tmp_path, {}).settings
    assert PeerLimits(settings).limit_creates
    assert settings.max_connections_per_ip == 500


def test_each_setting_of_a_tenant_is_on_the_page() -> None:
    named = set(re.findall(r"`(\w+)`", PAGE))
    assert {setting.name for setting in fields(TenantLimits)} <= named
