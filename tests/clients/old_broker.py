"""Build the broker of version 0.11.0 into `.compat/`, from the history of this repository.

    python -m tests.clients.old_broker

The clients must work with it, because a service and a broker are not updated at the same time.
"""

import shutil
import subprocess
import sys
import tarfile
from io import BytesIO
from pathlib import Path

VERSION = "0.11.0"
COMMIT = "4804238e8a5f8177bae166d9b7079345784dc2ad"
"""The last commit before the work on 0.12 began."""
ROOT = Path(__file__).parents[2]
BUILT = ROOT / ".compat"
FOLDER = BUILT / f"broker-{VERSION}"
MEGAPHONE = FOLDER / "venv" / "bin" / "megaphone"
UV = str(Path(sys.executable).with_name("uv"))


def missing() -> str | None:
    """Return the reason why there is no such broker; None if there is one."""
    return None if MEGAPHONE.exists() else f"`make old-broker` has not built {VERSION}"


def main() -> None:
    if MEGAPHONE.exists():
        return
    if (reason := unable()) is not None:
        print(f"the tests against {VERSION} are skipped: {reason}")
        return
    print(f"building the broker {VERSION} into {FOLDER.relative_to(ROOT)}", flush=True)
    BUILT.mkdir(exist_ok=True)
    (BUILT / ".gitignore").write_text("*\n")
    shutil.rmtree(FOLDER, ignore_errors=True)
    try:
        build()
    except subprocess.CalledProcessError:
        shutil.rmtree(FOLDER, ignore_errors=True)
        raise


def unable() -> str | None:
    """Return the reason why this machine cannot build; None if it can."""
    if shutil.which("git") is None:
        return "there is no git"
    known = subprocess.run(
        ["git", "cat-file", "-e", f"{COMMIT}^{{commit}}"], cwd=ROOT, capture_output=True
    )
    return None if known.returncode == 0 else f"the history here does not reach commit {COMMIT[:7]}"


def build() -> None:
    source, venv = FOLDER / "source", FOLDER / "venv"
    archive = subprocess.run(
        ["git", "archive", COMMIT], cwd=ROOT, check=True, stdout=subprocess.PIPE
    )
    with tarfile.open(fileobj=BytesIO(archive.stdout)) as files:
        files.extractall(source, filter="data")
    python = str(venv / "bin" / "python")
    uv("venv", "--python", sys.executable, str(venv))
    locked = str(source / "deploy" / "requirements.lock")
    uv("pip", "install", "--python", python, "--require-hashes", "--requirement", locked)
    uv("pip", "install", "--python", python, "--no-deps", str(source))


def uv(command: str, *arguments: str) -> None:
    subprocess.run([UV, "--quiet", "--system-certs", command, *arguments], check=True)


if __name__ == "__main__":
    main()
