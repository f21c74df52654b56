"""Build the programs that these tests need, into `.compat/`: `python -m tests.compat.build`.

It builds the published Rust broker (0.10) with its `megactl`, and a reader that uses the client
library of that broker. The build does not use the lock file of the Rust broker, because that file
names `metrics` 0.22.3, which compilers from Rust 1.9x on refuse.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.compat.original import BROKER, BUILT, INSTALLED, MEGACTL, TARGET, VERSION

HERE = Path(__file__).parent
CLIENT_MANIFEST = HERE / "client" / "Cargo.toml"


def main() -> None:
    if reason := unable():
        print(f"the tests against the Rust broker are skipped: {reason}")
        return
    BUILT.mkdir(exist_ok=True)
    (BUILT / ".gitignore").write_text("*\n")
    if not (BROKER.exists() and MEGACTL.exists()):
        print(f"building the Rust broker {VERSION} into {INSTALLED} (minutes, once)", flush=True)
        install_original()
    cargo("build", "--release", "--locked", *where(CLIENT_MANIFEST), "--target-dir", str(TARGET))


def unable() -> str | None:
    """Return the reason why this machine cannot build; None if it can."""
    if shutil.which("cargo") is None:
        return "there is no Rust toolchain"
    if not finds_openssl():
        return "OpenSSL's headers are missing (Debian: apt-get install pkg-config libssl-dev)"
    if run("cargo", "fetch", "--quiet", "--locked", *where(CLIENT_MANIFEST)) != 0:
        return "cargo cannot fetch the packages"
    return None


def finds_openssl() -> bool:
    return sys.platform == "darwin" or (
        shutil.which("pkg-config") is not None and run("pkg-config", "--exists", "openssl") == 0
    )


def install_original() -> None:
    root = ("--root", str(INSTALLED), "--target-dir", str(TARGET))
    # `bin-cli` is the feature that `megactl` needs.
    cargo("install", "megaphone-broker", "--version", f"={VERSION}", "--features", "bin-cli", *root)


def where(manifest: Path) -> tuple[str, str]:
    return "--manifest-path", str(manifest)


def cargo(*arguments: str) -> None:
    """Run cargo, which reports its own progress. Raises: SystemExit, if cargo fails."""
    if code := run("cargo", *arguments):
        sys.exit(f"`cargo {' '.join(arguments)}` failed with {code}")


def run(*command: str) -> int:
    # The build of the Rust broker generates code from its schema. The protoc of grpcio-tools has
    # the files of google/protobuf, which Debian has in another package than protoc.
    protoc = {"PROTOC": str(HERE / "protoc"), "PYTHON": sys.executable}
    return subprocess.run(command, env=os.environ | protoc, stdin=subprocess.DEVNULL).returncode


if __name__ == "__main__":
    main()
