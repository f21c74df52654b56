"""What must be true of the repository before a release. A failed check raises SystemExit."""

import re
import subprocess
import sys
from pathlib import Path

from megaphone import __version__

ROOT = Path(__file__).parents[1]
FINAL_VERSION = re.compile(r"\d+\.\d+\.\d+")


def git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def check_tree() -> None:
    """Check that every change is committed."""
    if changes := git("status", "--porcelain"):
        sys.exit(f"commit or remove these first:\n{changes}")


def check_version() -> str:
    """Check that the version can be released and is not released yet. Returns: the version."""
    if not FINAL_VERSION.fullmatch(__version__):
        sys.exit(f"the version in megaphone/__init__.py is {__version__}; it must be like 1.2.3")
    tag = f"v{__version__}"
    if git("tag", "--list", tag) and git("rev-parse", f"{tag}^{{commit}}") != git(
        "rev-parse", "HEAD"
    ):
        sys.exit(f"{tag} is released already: raise the version in megaphone/__init__.py")
    return __version__


def check_changelog(version: str, text: str | None = None) -> None:
    """Check that the changelog has an entry with a date for the version, and nothing unreleased."""
    if text is None:
        text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## \[(.+?)\](.*?)(?=^## \[|\Z)", text, re.MULTILINE | re.DOTALL))
    heading, _, entries = sections.get(version, "").partition("\n")
    if not re.fullmatch(r" - \d{4}-\d\d-\d\d", heading):
        sys.exit(f"CHANGELOG.md needs a section `## [{version}] - YYYY-MM-DD`")
    if not entries.strip():
        sys.exit(f"the section of {version} in CHANGELOG.md is empty")
    if sections.get("Unreleased", "").strip():
        sys.exit(f"CHANGELOG.md has unreleased changes: move them to the section of {version}")
