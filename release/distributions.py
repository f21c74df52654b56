"""Build the source distribution and the wheels, and check that they can be published.

There are five wheels: the broker's two, the client's, that of the API, and that of the operator of
Kubernetes. Of the broker's wheels the pure one runs everywhere; the compiled one has modules as
machine code, for one platform and one version of Python. The source distribution has the source of
all. A release is built from the last commit, not from the working tree, so that no ignored file
gets in. Each check raises SystemExit if it fails.
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
from typing import NamedTuple
from zipfile import ZipFile

from release.checks import ROOT, git

DIST = ROOT / "dist"
WHEEL_TESTS = "tests/e2e/test_wheel.py"
RELATIVE_LINK = re.compile(r"\]\((?!https?:|#)[^)]+\)")


API_FOLDER = "gen"
CLIENT_FOLDER = "clients/python"
OPERATOR_FOLDER = "operator"


class Distributions(NamedTuple):
    source: Path
    api: Path
    client: Path
    operator: Path
    pure: Path
    compiled: Path


def build(source: Path, into: Path) -> Distributions:
    """Build all distributions of a source tree."""
    hatchling(source, into, "sdist")
    hatchling(source, into, "wheel")
    build_companions(source, into)
    hatchling(source / OPERATOR_FOLDER, into, "wheel")
    compile_wheel(source, into)
    [archive] = into.glob("*.tar.gz")
    [api] = into.glob("megaphone_api-*.whl")
    [client] = into.glob("megaphone_client-*.whl")
    [operator] = into.glob("megaphone_operator-*.whl")
    [pure] = into.glob("megaphone_broker-*-none-any.whl")
    [compiled] = set(into.glob("megaphone_broker-*.whl")) - {pure}
    return Distributions(archive, api, client, operator, pure, compiled)


def build_companions(source: Path, into: Path) -> None:
    """Build the wheels of the API and of the client, which each wheel of the broker needs."""
    hatchling(source / API_FOLDER, into, "wheel")
    hatchling(source / CLIENT_FOLDER, into, "wheel")


def compile_wheel(source: Path, into: Path) -> None:
    """Build the compiled wheel of the broker. It takes a minute or two, and needs gcc."""
    hatchling(source, into, "wheel", HATCH_BUILD_HOOK_ENABLE_CUSTOM="true")


def hatchling(source: Path, into: Path, target: str, **variables: str) -> None:
    variables["SOURCE_DATE_EPOCH"] = git("log", "-1", "--format=%ct")
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(into)]
    done = subprocess.run(
        command,
        cwd=source,
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        sys.exit(f"the build failed:\n{done.stdout}")


def build_working_tree() -> Distributions:
    """Build the files as they are now into dist/."""
    shutil.rmtree(DIST, ignore_errors=True)
    return build(ROOT, DIST)


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


def build_twice() -> Distributions:
    """Build into dist/, and again from the source distribution; the two builds must be equal.

    So whoever has the source distribution can build the same files, and it lacks nothing.
    """
    shutil.rmtree(DIST, ignore_errors=True)
    with last_commit() as source, tempfile.TemporaryDirectory() as folder:
        built = build(source, DIST)
        with tarfile.open(built.source) as files:
            files.extractall(folder, filter="data")
        [unpacked] = Path(folder).iterdir()
        again = build(unpacked, Path(folder, "again"))
        for first, second in zip(built, again, strict=True):
            if first.read_bytes() != second.read_bytes():
                sys.exit(f"two builds of {first.name} differ")
    return built


def check_metadata(wheel: Path, version: str) -> None:
    """Check what a package index would show."""
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


def check_wheel(wheel: Path) -> None:
    """Install the wheel into an environment of its own, and check that it serves."""
    variables = {"MEGAPHONE_WHEEL": str(wheel)}  # instead of one that the test builds
    command = [sys.executable, "-m", "pytest", "-q", WHEEL_TESTS]
    if subprocess.run(command, cwd=ROOT, env=os.environ | variables).returncode:
        sys.exit(f"{wheel.name} does not work when it is installed")
