"""The wheel, installed where nothing of the checkout can be seen, serves."""

import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.support.process import broker_process

pytestmark = pytest.mark.xdist_group("wheel")

ROOT = Path(__file__).parents[2]
UV = str(Path(sys.executable).with_name("uv"))
"""It installs as pip does, in a fifth of the time."""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel under test. Returns: the folder of the commands."""
    built = tmp_path_factory.mktemp("wheel")
    wheel = wheel_under_test(built)
    home = tmp_path_factory.mktemp("installed")
    run(UV, "venv", "--quiet", "--no-project", "--python", sys.executable, str(home), cwd=home)
    constraints = built / "constraints.txt"
    constraints.write_text("\n".join(locked_versions()))
    install = [UV, "pip", "install", "--quiet", "--system-certs", "-c", str(constraints)]
    run(*install, "--python", str(home / "bin" / "python"), str(wheel), cwd=home)
    return home / "bin"


def wheel_under_test(folder: Path) -> Path:
    """Return the wheel that `make release` has built, or build one into a folder."""
    if given := os.environ.get("MEGAPHONE_WHEEL"):
        return Path(given)
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder), cwd=ROOT)
    [wheel] = folder.glob("*.whl")
    return wheel


def locked_versions() -> list[str]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return [line.rstrip(" \\") for line in lines if "==" in line]


def run(*command: str, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.timeout(400)
def test_the_installed_wheel_serves(installed: Path, tmp_path: Path) -> None:
    with broker_process(tmp_path, command=str(installed / "megaphone")) as broker:
        request = urllib.request.Request(f"{broker.url}/create", method="POST")
        with urllib.request.urlopen(request) as response:
            assert response.status == 200


@pytest.mark.timeout(400)
def test_the_wheel_brings_the_generated_code_and_its_types(installed: Path, tmp_path: Path) -> None:
    code = (
        "import megaphone_api.v1.channels_pb2_grpc as m, pathlib;"
        "print((pathlib.Path(m.__file__).parents[1] / 'py.typed').exists())"
    )
    assert run(str(installed / "python"), "-c", code, cwd=tmp_path) == "True\n"
