"""Run tests on the compiled wheel, which is built first if the code has changed.

    python -m tests.compiled tests/core -k lease

The arguments are those of pytest. The wheel is installed into `.venv-compiled`. The tests run in a
folder there that has all of the repository except the code of the broker, so that no test can
import that instead of the wheel.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from hatch_build import OPTIMIZATION
from release.distributions import (
    API_FOLDER,
    CLIENT_FOLDER,
    OPERATOR_FOLDER,
    build_companions,
    compile_wheel,
)
from tests.support.build import WANTED_BUILD

ROOT = Path(__file__).parents[1]
HOME = ROOT / ".venv-compiled"
TREE = HOME / "tree"
BUILT_FROM = HOME / "built-from"
UV = str(Path(sys.executable).with_name("uv"))
CODE = ("megaphone", API_FOLDER, CLIENT_FOLDER)
BUILT_OF = (*CODE, "hatch_build.py", "pyproject.toml", "requirements.lock")
OWN = {"megaphone", API_FOLDER, ".git", ".venv", ".venv-compiled", "dist"}
"""What the tests must not see, or what is made anew for them."""
NOT_OF_BROKER = "tests/operator_e2e"
"""Tests that have an environment of their own."""


def fingerprint() -> str:
    """Return a hash of all that the environment is made of."""
    digest = hashlib.sha256(f"{sys.version} {os.environ.get(OPTIMIZATION)}".encode())
    for name in BUILT_OF:
        path = ROOT / name
        for file in sorted(path.rglob("*.py*")) if path.is_dir() else [path]:
            if "__pycache__" not in file.parts:
                digest.update(f"\0{file.relative_to(ROOT)}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def is_built() -> bool:
    """Return whether the environment exists, and is made of what is there now."""
    return BUILT_FROM.exists() and BUILT_FROM.read_text() == fingerprint()


def make_environment() -> None:
    """Install the locked versions of everything, and the wheel."""
    print("Building the compiled wheel", flush=True)
    run(UV, "venv", "--quiet", "--clear", "--no-project", "--python", sys.executable, str(HOME))
    install = [UV, "pip", "install", "--quiet", "--system-certs"]
    install += ["--python", str(HOME / "bin" / "python")]
    run(*install, "--require-hashes", "-r", "requirements.lock")
    shutil.rmtree(HOME / "dist", ignore_errors=True)
    build_companions(ROOT, HOME / "dist")
    compile_wheel(ROOT, HOME / "dist")
    run(*install, "--no-deps", *map(str, (HOME / "dist").iterdir()))
    run(*install, "--no-deps", "--no-build-isolation", "--editable", OPERATOR_FOLDER)


def run(*command: str) -> None:
    subprocess.run(command, cwd=ROOT, check=True)


def link_tree() -> None:
    """Link what the tests need, with this environment as their `.venv`."""
    shutil.rmtree(TREE, ignore_errors=True)
    TREE.mkdir()
    (TREE / ".venv").symlink_to(HOME)
    (HOME / ".ready").touch()  # so that `make`, which some tests call, sets up nothing
    for path in ROOT.iterdir():
        if path.name not in OWN:
            (TREE / path.name).symlink_to(path)


def main() -> int:
    if not is_built():
        wanted = fingerprint()  # before, because the code may change meanwhile
        make_environment()
        BUILT_FROM.write_text(wanted)
    link_tree()
    [wheel] = (HOME / "dist").glob("megaphone_broker-*.whl")
    variables = {WANTED_BUILD: "compiled", "MEGAPHONE_WHEEL": str(wheel)}
    command = [str(HOME / "bin" / "pytest"), f"--ignore={NOT_OF_BROKER}", *sys.argv[1:]]
    return subprocess.run(command, cwd=TREE, env=os.environ | variables).returncode


if __name__ == "__main__":
    sys.exit(main())
