"""Everything that the README tells a newcomer to type does what it says."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.build import pure_only
from tests.support.process import BrokerProcess, broker_process, environment, wait_until_it_serves
from tests.support.settings import IS_LONG

pytestmark = pytest.mark.group("README")

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
INSTALL, START, TAIL, SEND, READ, WRITE = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
[PROGRAM] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    with broker_process(tmp_path_factory.mktemp("run"), poll_duration_millis=1_500) as broker:
        yield broker


@pure_only("the source is hidden from these tests")
def test_make_starts_the_broker(tmp_path: Path) -> None:
    process = started(START, environment(tmp_path, {}))
    assert process.stderr is not None
    try:
        assert wait_until_it_serves(process.stderr)
    finally:
        stop(process)


@pytest.mark.skipif(not IS_LONG, reason="installs everything anew")
@pytest.mark.timeout(600)
def test_pip_installs_the_broker(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    settings = environment(tmp_path, {})
    settings["PATH"] = f"{tmp_path / 'venv' / 'bin'}:{settings['PATH']}"
    settings.pop("SSL_CERT_FILE")
    process = started(INSTALL.replace("pip install", "pip install --quiet"), settings)
    assert process.stderr is not None
    try:
        assert wait_until_it_serves(process.stderr)
    finally:
        stop(process)


def test_the_commands_show_an_event_in_the_other_terminal(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("XDG_")}
    path = f"{Path(sys.executable).parent}:{clean['PATH']}"
    user = clean | {"PATH": path, "HOME": str(tmp_path), "MEGAPHONE_URL": broker.url}
    reading = subprocess.Popen(
        ["bash", "-ec", TAIL], env=user, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert reading.stdout is not None
    try:
        wait_for_channel(tmp_path / ".local/state/megaphone/channels.json")
        event_id = subprocess.check_output(["bash", "-ec", SEND], env=user, text=True).strip()
        line = json.loads(reading.stdout.readline())
    finally:
        os.killpg(reading.pid, signal.SIGINT)
        reading.communicate(timeout=10)
    assert (line["sid"], line["eid"], line["body"]) == ("greetings", event_id, {"hello": "world"})


def test_an_event_appears_in_the_other_terminal(broker: BrokerProcess, tmp_path: Path) -> None:
    here = broker.url.removeprefix("http://")
    reading = subprocess.Popen(
        ["bash", "-ec", READ.replace("localhost:3000", here)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    )
    wait_for_channel(tmp_path / "channel.json")
    wrote = subprocess.check_output(
        ["bash", "-ec", WRITE.replace("localhost:3000", here)], cwd=tmp_path, text=True
    )
    read, _ = reading.communicate(timeout=30)
    assert reading.returncode == 0
    created, line = (json.loads(printed) for printed in read.replace("}{", "}\n{").splitlines())
    assert {"producerAddress", "consumerAddress"} <= created.keys()
    assert line["eid"] == json.loads(wrote)["eid"]
    assert (line["sid"], line["body"]) == ("greetings", {"hello": "world"})


def wait_for_channel(file: Path) -> None:
    until = time.monotonic() + 10
    while not (file.exists() and file.read_text().endswith("}")):
        assert time.monotonic() < until, "no channel was created"
        time.sleep(0.02)


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_the_program_reads_the_event_that_it_writes(broker: BrokerProcess, scheme: str) -> None:
    url = {"http": broker.url, "grpc": f"grpc://{broker.grpc_target}"}[scheme]
    printed = subprocess.check_output(
        [sys.executable, "-c", PROGRAM], env=os.environ | {"MEGAPHONE_URL": url}, text=True
    )
    assert printed == "greetings {'hello': 'world'}\n"


def test_the_promise_is_the_one_that_the_protocol_makes() -> None:
    assert "at least once and in order to a reader that acknowledges or resumes" in README.lower()


def started(command: str, settings: dict[str, str]) -> "subprocess.Popen[str]":
    """Start a command of the README on free ports."""
    return subprocess.Popen(
        ["bash", "-ec", command],
        cwd=ROOT,
        env=settings,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def stop(process: "subprocess.Popen[str]") -> None:
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(timeout=10)
    if process.stderr is not None:
        process.stderr.close()
