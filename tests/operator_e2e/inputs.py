"""What the end-to-end tests of the operator depend on: `python -m tests.operator_e2e.inputs`.

The digest of these files is kept when the tests have passed, in a file that is committed. CI runs
the tests only if the files are others now, because a run takes minutes.
"""

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PASSED = Path(__file__).with_name("passed.sha256")
INPUTS = (
    "deploy",
    "megaphone/app.py",
    "megaphone/cluster",
    "megaphone/core/admin.py",
    "megaphone/core/agents.py",
    "megaphone/rest/probes.py",
    "operator",
    "tests/operator_e2e",
    "tests/support/checker.py",
    "tests/support/cluster_load.py",
)
NO_INPUTS = {"__pycache__", PASSED.name, "node-secret.env", "store.env", ".env", "README.md"}


def files() -> Iterator[Path]:
    for name in INPUTS:
        place = ROOT / name
        for file in [place] if place.is_file() else sorted(place.rglob("*")):
            if file.is_file() and not NO_INPUTS & set(file.parts):
                yield file


def digest() -> str:
    """Return the digest of the names and the contents of all inputs."""
    total = hashlib.sha256()
    for file in files():
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        total.update(f"{file.relative_to(ROOT)} {content}\n".encode())
    return total.hexdigest()


def have_passed() -> bool:
    """Return whether the tests have passed with the inputs as they are."""
    return PASSED.exists() and PASSED.read_text().strip() == digest()


def note_pass() -> None:
    PASSED.write_text(f"{digest()}\n")


if __name__ == "__main__":
    sys.exit(0 if have_passed() else 1)
