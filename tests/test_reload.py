"""New settings take effect in every part of a node, or in none."""

import logging
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megaphone.app import running
from megaphone.reload import Reloadable, Reloader
from megaphone.settings import Nodes, Settings
from tests.support.settings import certificates, fast_settings

OLD = Settings(max_channels=1, cors_allow_origin=("https://old.example",))
NEW = replace(OLD, max_channels=2, cors_allow_origin=("https://new.example",))


class Part:
    """Has one setting, and refuses to have more than ten channels."""

    def __init__(self) -> None:
        self.channels = OLD.max_channels

    def prepare(self, settings: Settings) -> Callable[[], None]:
        if settings.max_channels > 10:
            raise ValueError("at most ten")

        def apply() -> None:
            self.channels = settings.max_channels

        return apply


class Defective:
    def prepare(self, settings: Settings) -> Callable[[], None]:
        raise KeyError("not foreseen")


def reloader(*parts: Reloadable) -> Reloader:
    made = Reloader(OLD)
    for part in parts:
        made.add(part, "max_channels")
    return made


async def test_new_settings_take_effect_in_all_parts() -> None:
    parts = Part(), Part()
    node = reloader(*parts)
    assert await node.reload(lambda present: NEW)
    assert [part.channels for part in parts] == [2, 2]
    assert (node.succeeded, node.failed) == (1, 0)


async def test_settings_that_need_a_start_are_named_and_stay(
    caplog: pytest.LogCaptureFixture,
) -> None:
    node = reloader(Part())
    await node.reload(lambda present: NEW)
    assert node.settings == replace(OLD, max_channels=2)
    [warning] = [one.message for one in caplog.records if one.levelno == logging.WARNING]
    assert warning == "these settings change only at the next start: cors_allow_origin"


async def test_members_of_a_table_are_reloaded_one_by_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    node = Reloader(OLD)
    node.add(Part(), "nodes.certificate", "nodes.key")
    nodes = Nodes(certificate="new.pem", secret="s" * 32)
    await node.reload(lambda present: replace(present, nodes=nodes))
    assert node.settings == replace(OLD, nodes=Nodes(certificate="new.pem"))
    assert [one.message for one in caplog.records] == [
        "the settings were read again; changed: nodes.certificate",
        "these settings change only at the next start: nodes.secret",
    ]


async def test_when_one_part_refuses_nothing_has_changed(caplog: pytest.LogCaptureFixture) -> None:
    parts = Part(), Part()
    node = reloader(*parts, Part())
    assert not await node.reload(lambda present: replace(NEW, max_channels=11))
    assert [part.channels for part in parts] == [1, 1]
    assert node.settings is OLD
    assert (node.succeeded, node.failed) == (0, 1)
    [line] = [one.message for one in caplog.records]
    assert line == "the settings stay as they were: at most ten"


async def test_settings_that_cannot_be_read_change_nothing() -> None:
    part = Part()
    node = reloader(part)

    def unreadable(present: Settings) -> Settings:
        raise ValueError("megaphone.toml: is not TOML")

    assert not await node.reload(unreadable)
    assert (part.channels, node.settings, node.failed) == (1, OLD, 1)


async def test_a_defect_changes_nothing_either() -> None:
    part = Part()
    node = reloader(part, Defective())
    assert not await node.reload(lambda present: NEW)
    assert (part.channels, node.failed) == (1, 1)
    assert await node.reload(lambda present: OLD) is False


async def test_the_page_names_each_setting_that_is_reloaded() -> None:
    made = certificates()
    files: dict[str, Any] = {"certificate": str(made.certificate), "key": str(made.key)}
    nodes = Nodes(address="127.0.0.1:0", ca=str(made.authority), names=("*",), **files)
    page = (Path(__file__).parents[1] / "docs" / "operating.md").read_text()
    [table] = re.findall(r"^\| what can change .*?\n\n", page, re.MULTILINE | re.DOTALL)
    documented = set(re.findall(r"`([a-z_.]+)`", table))
    async with running(fast_settings(tls=made.tls, nodes=nodes)) as app:
        assert documented == app.reloader.names
