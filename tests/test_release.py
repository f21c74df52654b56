"""What `make release` checks, and the README that a package index shows."""

import re
import tomllib
from pathlib import Path

import pytest

from hatch_build import readme_for_index
from megaphone import __version__
from release.checks import check_changelog
from tests.support.build import pure_only

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CHANGES = """\
# Changelog

## [Unreleased]

## [1.2.3] - 2026-01-31

### Added

- Something.

## [1.2.2] - 2026-01-01

- Something else.
"""


def test_a_version_with_a_dated_entry_can_be_released() -> None:
    check_changelog("1.2.3", CHANGES)


@pytest.mark.parametrize(
    ("version", "change", "reason"),
    [
        ("1.2.4", ("", ""), "needs a section `## [1.2.4] - YYYY-MM-DD`"),
        ("1.2.3", (" - 2026-01-31", ""), "needs a section"),
        ("1.2.3", ("### Added\n\n- Something.\n", ""), "is empty"),
        ("1.2.3", ("[Unreleased]\n", "[Unreleased]\n\n- New.\n"), "unreleased changes"),
    ],
    ids=["no entry", "no date", "empty", "unreleased changes"],
)
def test_a_version_without_one_is_refused(
    version: str, change: tuple[str, str], reason: str
) -> None:
    with pytest.raises(SystemExit, match=re.escape(reason)):
        check_changelog(version, CHANGES.replace(*change) if change[0] else CHANGES)


def test_the_readme_for_an_index_needs_no_file() -> None:
    text = readme_for_index(README, files_url="")
    assert "](docs/" not in text
    assert "docs/delivery.md" in text
    assert "```mermaid" not in text
    assert README.count("```bash") == text.count("```bash")


def test_its_links_lead_to_the_files_if_their_address_is_known() -> None:
    text = readme_for_index("See [this](docs/a.md) and [that](https://b).", "https://example.com/c")
    assert text == "See [this](https://example.com/c/docs/a.md) and [that](https://b)."


def test_its_pictures_are_left_out_if_their_address_is_not_known() -> None:
    picture = "Look:\n\n![A page](docs/a.png)\n\nThere."
    assert readme_for_index(picture, "") == "Look:\n\n\n\nThere."
    assert "![A page](https://c/docs/a.png)" in readme_for_index(picture, "https://c")


def test_code_in_it_stays_as_it_is() -> None:
    code = "```python\nx[0](y)\n```\n"
    assert readme_for_index(code, "") == code


@pure_only("the source is hidden from these tests")
def test_the_distributions_have_one_version() -> None:
    for folder in (ROOT, ROOT / "gen", ROOT / "clients" / "python", ROOT / "operator"):
        project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
        source = (folder / project["tool"]["hatch"]["version"]["path"]).resolve()
        assert source == (ROOT / "megaphone" / "__init__.py").resolve()
        wanted = project["project"].get("dependencies", [])
        for extra in project["project"].get("optional-dependencies", {}).values():
            wanted += extra
        for one in wanted:
            if one.startswith("megaphone-"):
                assert one.endswith(f"=={__version__}"), f"{one} in {folder / 'pyproject.toml'}"
