"""What docs/limits.md says is so: its commands print what it says, and it names each limit."""

import re
from dataclasses import fields
from pathlib import Path

from megaphone.settings import TenantLimits
from tests.support.documented import FENCE, ROOT, assert_printed, run_session, steps
from tests.support.process import broker_process

PAGE = (ROOT / "docs" / "limits.md").read_text()


def test_each_example_prints_what_it_says(tmp_path: Path) -> None:
    [settings] = [text for language, text in FENCE.findall(PAGE) if language == "toml"]
    (tmp_path / "megaphone.toml").write_text(settings)
    examples = list(steps(PAGE))
    with broker_process(tmp_path) as broker:
        actual = {"localhost:3000": broker.url.removeprefix("http://")}
        printed = run_session([one.command for one in examples], actual, tmp_path)
    for example, text in zip(examples, printed, strict=True):
        assert_printed(example, text)


def test_each_setting_of_a_tenant_is_on_the_page() -> None:
    named = set(re.findall(r"`(\w+)`", PAGE))
    assert {setting.name for setting in fields(TenantLimits)} <= named
