"""The programs of a Kubernetes cluster: where they are, and how the control plane is built.

The control plane is built once for each version, in a cache outside of the repository. The command
`python -m tests.operator_e2e.programs` only builds it.
"""

import hashlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

MODULE = Path(__file__).with_name("control_plane")
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "megaphone"
NEEDED = {
    "etcd": "etcd-server",
    "ip": "iproute2",
    "nft": "nftables",
    "nginx": "nginx",
    "redis-server": "redis-server",
    "go": "a Go toolchain, 1.26 or later",
}
"""The programs that must be there, and Debian's packages with them."""
PATHS = "/usr/local/sbin:/usr/sbin:/sbin:"
BUILD_AT_MOST_S = 3600


def program(name: str) -> str | None:
    """Return the path of a program, or None if it is missing."""
    return shutil.which(name, path=PATHS + os.environ.get("PATH", ""))


def missing() -> str | None:
    """Return the reason why the cluster cannot run on this machine; None if it can."""
    if os.geteuid() != 0:
        return "only root may make the network namespaces of the pods"
    needed = dict(NEEDED)
    if control_plane().exists():
        del needed["go"]
    lacking = [what for name, what in needed.items() if program(name) is None]
    return f"this machine lacks {', '.join(lacking)}" if lacking else None


def version() -> str:
    """Return the version of Kubernetes."""
    found = re.search(r"k8s\.io/kubernetes (v[0-9.]+)", (MODULE / "go.mod").read_text())
    assert found is not None
    return found[1]


def control_plane() -> Path:
    """Return the path of the control plane, which may not be built yet."""
    sources = [(MODULE / name).read_bytes() for name in ("main.go", "go.mod", "go.sum")]
    digest = hashlib.sha256(b"\0".join(sources)).hexdigest()[:12]
    return CACHE / f"control-plane-{version()}-{digest}"


def build_control_plane() -> Path:
    """Build the control plane, unless it is built. Raises: CalledProcessError."""
    built = control_plane()
    if built.exists():
        return built
    print(f"Building the control plane of Kubernetes {version()} (minutes, once)", flush=True)
    began = time.monotonic()
    CACHE.mkdir(parents=True, exist_ok=True)
    partial = built.with_suffix(f".{os.getpid()}")
    subprocess.run(
        ["nice", "-n", "19", str(program("go")), "build", *flags(), "-o", str(partial), "."],
        cwd=MODULE,
        env={**os.environ, "CGO_ENABLED": "0"},  # so it needs no compiler of C
        check=True,
        timeout=BUILD_AT_MOST_S,
    )
    partial.rename(built)
    print(f"Built it in {time.monotonic() - began:.0f} s", flush=True)
    return built


def flags() -> Sequence[str]:
    """Return the flags of the build. It does not optimize, because that takes a third of the time.

    The parts of a control plane refuse to work with others whose version they do not know.
    """
    number = version()
    major, minor, _ = number.removeprefix("v").split(".")
    known = {"gitVersion": number, "gitMajor": major, "gitMinor": minor}
    stamps = [f"-X k8s.io/component-base/version.{name}={value}" for name, value in known.items()]
    return "-gcflags=all=-N -l -dwarf=false", f"-ldflags=-s -w {' '.join(stamps)}"


if __name__ == "__main__":
    build_control_plane()
