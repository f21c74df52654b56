"""Build the source distribution and the wheel, and check that they can be published.

They are built from the last commit, not from the working tree, so that no ignored file gets in.
Each check raises SystemExit if it fails.
"""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from zipfile import ZipFile

from release.checks import ROOT, git

DIST = ROOT / "dist"
WHEEL_TESTS = "tests/e2e/test_wheel.py"
RELATIVE_LINK = re.compile(r"\]\((?!https?:|#)[^)]+\)")


def build(source: Path, into: Path) -> list[Path]:
    """Build both distributions of a source tree. Returns: their files, the wheel first."""
    times = {"SOURCE_DATE_EPOCH": git("log", "-1", "--format=%ct")}
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(into)]
    done = subprocess.run(command, cwd=source, env=os.environ | times, capture_output=True)
    if done.returncode:
        sys.exit(f"the build failed:\n{done.stderr.decode()}")
    return sorted(into.iterdir(), key=lambda file: file.suffix, reverse=True)


@contextmanager
def last_commit() -> Iterator[Path]:
    """A folder with the files of the last commit."""
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder, "commit.tar")
        git("archive", "--format=tar", f"--output={archive}", "HEAD")
        source = Path(folder, "commit")
        with tarfile.open(archive) as files:
            files.extractall(source, filter="data")
        yield source


def build_twice() -> list[Path]:
    """Build into dist/, and again from the source distribution; both builds must be equal.

    So whoever has the source distribution can build the same files, and it lacks nothing.
    """
    shutil.rmtree(DIST, ignore_errors=True)
    with last_commit() as source, tempfile.TemporaryDirectory() as folder:
        built = build(source, DIST)
        with tarfile.open(built[1]) as files:
            files.extractall(folder, filter="data")
        [unpacked] = Path(folder).iterdir()
        again = build(unpacked, Path(folder, "again"))
        for first, second in zip(built, again, strict=True):
            if first.read_bytes() != second.read_bytes():
                sys.exit(f"two builds of {first.name} differ")
    return built


def check_metadata(distributions: list[Path], version: str) -> None:
    """Check what a package index would show."""
    wheel = distributions[0]
    metadata = metadata_of(wheel)
    if metadata["Version"] != version:
        sys.exit(f"{wheel.name} says that its version is {metadata['Version']}")
    if metadata["Description-Content-Type"] != "text/markdown":
        sys.exit(f"{wheel.name} does not say that its README is Markdown")
    if links := RELATIVE_LINK.findall(str(metadata.get_payload())):
        sys.exit(f"the README in {wheel.name} links to files: {', '.join(links)}")
    if not metadata.get_all("Project-URL"):
        print("warning: pyproject.toml has no [project.urls]; an index would show no link")


def metadata_of(wheel: Path) -> Message:
    with ZipFile(wheel) as files:
        [name] = [name for name in files.namelist() if name.endswith(".dist-info/METADATA")]
        return message_from_bytes(files.read(name))


def check_wheel(distributions: list[Path]) -> None:
    """Install the wheel into an environment of its own, and check that it serves."""
    wheel = {"MEGAPHONE_WHEEL": str(distributions[0])}  # instead of one that the test builds
    command = [sys.executable, "-m", "pytest", "-q", WHEEL_TESTS]
    if subprocess.run(command, cwd=ROOT, env=os.environ | wheel).returncode:
        sys.exit(f"{distributions[0].name} does not work when it is installed")
