"""The wheels, installed where nothing of the checkout can be seen, work."""

import json
import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from release.distributions import OPERATOR_FOLDER, build_companions, hatchling
from tests.support.build import pure_only
from tests.support.process import broker_process, environment

pytestmark = pytest.mark.group("wheel")

ROOT = Path(__file__).parents[2]
API_README = ROOT / "gen" / "README.md"
SITE = "import sysconfig; print(sysconfig.get_path('purelib'))"
UV = str(Path(sys.executable).with_name("uv"))
"""It installs as pip does, in a fifth of the time."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the broker's wheel that `make release` has built, or build one. The wheels that it
    needs are beside it."""
    if given := os.environ.get("MEGAPHONE_WHEEL"):
        return Path(given)
    folder = tmp_path_factory.mktemp("wheels")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder), cwd=ROOT)
    [built] = folder.glob("*.whl")
    build_companions(ROOT, folder)
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the broker. Returns: the folder of the commands."""
    return installation(wheel, wheel.parent, tmp_path_factory.mktemp("broker"))


@pytest.fixture(scope="module")
def with_client(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the client alone. Returns: the folder of the commands."""
    return installation("megaphone-client", wheel.parent, tmp_path_factory.mktemp("client"))


def installation(what: object, wheels: Path, home: Path) -> Path:
    run(UV, "venv", "--quiet", "--no-project", "--python", sys.executable, str(home), cwd=home)
    constraints = home / "constraints.txt"
    constraints.write_text("\n".join(locked_versions()))
    install = [UV, "pip", "install", "--quiet", "--system-certs", "-c", str(constraints)]
    install += ["--find-links", str(wheels), "--python", str(home / "bin" / "python")]
    run(*install, str(what), cwd=home)
    return home / "bin"


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
        with urllib.request.urlopen(f"{broker.url}/docs") as response:
            page = response.read().decode()
        for file in re.findall(r'(?:src|href)="(site/[^"]+)"', page):
            with urllib.request.urlopen(f"{broker.url}/{file}") as response:
                assert response.status == 200


@pytest.mark.timeout(400)
def test_without_its_extra_a_shared_store_says_what_to_install(
    installed: Path, tmp_path: Path
) -> None:
    command = [str(installed / "megaphone"), "serve"]
    settings = {**os.environ, "megaphone_store": "redis://127.0.0.1:1"}
    done = subprocess.run(command, cwd=tmp_path, env=settings, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("pip install 'megaphone-broker[redis]'")


@pure_only("the source is hidden from these tests")
@pytest.mark.timeout(400)
def test_the_wheel_brings_the_generated_code_and_its_types(installed: Path, tmp_path: Path) -> None:
    [imports] = re.findall(r"```python\n(.*?)```", API_README.read_text(), re.DOTALL)
    code = imports + (
        "import megaphone_api.v1.channels_pb2_grpc as m, pathlib;"
        "print((pathlib.Path(m.__file__).parents[1] / 'py.typed').exists())"
    )
    assert run(str(installed / "python"), "-c", code, cwd=tmp_path) == "True\n"


@pure_only("the source is hidden from these tests")
@pytest.mark.timeout(400)
def test_the_installed_schema_can_be_compiled_as_it_is(installed: Path, tmp_path: Path) -> None:
    site = Path(run(str(installed / "python"), "-c", SITE, cwd=tmp_path).strip())
    protoc = [sys.executable, "-m", "grpc_tools.protoc", f"-I{site}/megaphone_api/proto"]
    schema = ["megaphone/sync.proto", "megaphone/v1/admin.proto"]
    run(*protoc, f"--descriptor_set_out={tmp_path}/set", *schema, cwd=tmp_path)
    [commands] = re.findall(r"```bash\n(.*?)```", API_README.read_text(), re.DOTALL)
    here = f"export PATH='{installed}':$PATH"
    as_installed = f"protoc() {{ '{sys.executable}' -m grpc_tools.protoc \"$@\"; }}"
    run("bash", "-ec", f"{here}\n{as_installed}\n{commands}", cwd=tmp_path)
    assert (tmp_path / "megaphone.binpb").stat().st_size > 0


@pytest.mark.timeout(400)
def test_the_client_needs_nothing_of_the_broker(with_client: Path, tmp_path: Path) -> None:
    python = str(with_client / "python")
    run(python, "-c", "import megaphone_client", cwd=tmp_path)
    found = run(UV, "pip", "list", "--format", "json", "--python", python, cwd=tmp_path)
    names = {package["name"] for package in json.loads(found)}
    assert {"aiohttp", "megaphone-client", "msgspec"} <= names
    assert not names & {"cryptography", "grpcio", "megaphone-broker", "protobuf"}
    assert not names & {"prometheus-client", "typer", "uvloop"}


@pytest.mark.timeout(400)
def test_a_newcomer_gets_along_with_the_commands(installed: Path, tmp_path: Path) -> None:
    megaphone = str(installed / "megaphone")
    with broker_process(tmp_path, command=megaphone) as broker:
        home = {**environment(tmp_path, {}), "HOME": str(tmp_path), "MEGAPHONE_URL": broker.url}
        subprocess.run([megaphone, "create", "--save", "room"], env=home, check=True, timeout=60)
        tail = subprocess.Popen(
            [megaphone, "tail", "@room", "-o", "raw"],
            env=home,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        subprocess.run([megaphone, "write", "@room", "s", "1"], env=home, check=True, timeout=60)
        assert tail.stdout is not None
        assert tail.stdout.readline() == "1\n"
    with broker_process(tmp_path, command=megaphone, address=f"127.0.0.1:{broker.http_port}"):
        _, said = tail.communicate(timeout=60)
    assert tail.returncode == 3
    assert "`megaphone create --save room` makes a new one" in said


@pytest.mark.timeout(400)
def test_the_operator_needs_nothing_of_the_broker(tmp_path: Path) -> None:
    hatchling(ROOT / OPERATOR_FOLDER, tmp_path, "wheel")
    (tmp_path / "operator").mkdir()
    commands = installation("megaphone-operator", tmp_path, tmp_path / "operator")
    assert run(str(commands / "megaphone-operator"), "--version", cwd=tmp_path).strip()
    code = (
        "from megaphone_operator.proxy_files import proxy_files; import importlib.util as u;"
        "print(sorted(proxy_files()), u.find_spec('megaphone'))"
    )
    files = ["megaphone.conf", "nginx.conf", "question.conf", "questions.conf"]
    assert run(str(commands / "python"), "-c", code, cwd=tmp_path) == f"{files} None\n"
