"""What the broker is built from is pinned by version and by hash, and is what is installed here.

Whether a pinned version has a known vulnerability changes without any change of ours, and only
services on the internet know it. So `make audit` asks one, at night and before each release.
"""

import re
from importlib.metadata import distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LOCKS = [
    ROOT / name
    for name in (
        "requirements.lock",
        "deploy/requirements.lock",
        "deploy/build-requirements.lock",
        "operator/requirements.lock",
    )
]
OUR_OWN = {"megaphone-broker", "megaphone-client", "megaphone-api", "megaphone-operator"}
TOOLS = {"pip", "setuptools"}
"""What `python -m venv` may install itself."""
ENTRY = re.compile(
    r"(?P<name>[a-z0-9-]+)==(?P<version>[0-9][A-Za-z0-9.]*)( ; [^\\\n]+)?"
    r"(?P<hashes>( \\\n    --hash=sha256:[0-9a-f]{64})+)\n"
)


def entries(lock: Path) -> dict[str, str]:
    """Return the versions in a lock by their names. Fails if it has anything but such entries."""
    text = "".join(
        line for line in lock.read_text().splitlines(keepends=True) if not line.startswith("#")
    )
    assert ENTRY.sub("", text) == "", f"{lock} has more than pinned versions with hashes"
    return {found["name"]: found["version"] for found in ENTRY.finditer(text)}


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: str(lock.relative_to(ROOT)))
def test_every_dependency_is_pinned_by_its_version_and_its_hashes(lock: Path) -> None:
    assert len(entries(lock)) > 3


def test_the_image_has_the_versions_that_are_tested() -> None:
    tested = entries(LOCKS[0])
    for lock in LOCKS[1:]:
        assert entries(lock).items() <= tested.items()


def test_nothing_is_installed_that_is_not_locked() -> None:
    installed = {re.sub(r"[._]", "-", one.name.lower()): one.version for one in distributions()}
    unlocked = installed.items() - entries(LOCKS[0]).items()
    assert {name for name, _ in unlocked} <= OUR_OWN | TOOLS
    assert {name for name in OUR_OWN if name in installed}


def test_installations_check_the_hashes() -> None:
    for file in ("Makefile", "deploy/Dockerfile", "operator/Dockerfile"):
        text = (ROOT / file).read_text().replace("\\\n", " ")
        for line in text.splitlines():
            if "pip install" in line and "-r " in line:
                assert "--require-hashes" in line


def test_the_audit_covers_every_lock() -> None:
    makefile = (ROOT / "Makefile").read_text()
    recipe = makefile.partition("\naudit:")[2].partition("\n.PHONY")[0]
    for lock in LOCKS:
        assert f"-r {lock.relative_to(ROOT)}" in recipe
    assert "$(MAKE) --no-print-directory audit" in makefile.partition("\nrelease:")[2]
    assert "make audit" in (ROOT / ".ci" / "nightly").read_text()
