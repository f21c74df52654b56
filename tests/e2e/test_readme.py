"""Everything that the README tells a newcomer to type does what it says."""

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.process import broker_process, environment, wait_until_it_serves

pytestmark = pytest.mark.xdist_group("README")

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
START, *SESSION, SHOW, CHECK, LOOK, TEST = BLOCKS


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Start the broker as the README does, but on free ports and with shorter reads."""
    settings = environment(tmp_path_factory.mktemp("run"), {"poll_duration_millis": 700})
    process = subprocess.Popen(
        ["bash", "-c", f"exec {START}"],
        cwd=ROOT,
        env=settings,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    try:
        http_port, grpc_port = wait_until_it_serves(process.stderr)
        yield {
            "localhost:3000": f"127.0.0.1:{http_port}",
            "localhost:3001": f"127.0.0.1:{grpc_port}",
        }
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=10)
        process.stderr.close()


def test_the_session_does_what_it_says(ports: dict[str, str]) -> None:
    created, wrote, read, wrote_by_grpc, read_over_http, wrote_by_http, read_by_grpc = run_session(
        ports
    )
    assert {"producerAddress", "consumerAddress"} <= json.loads(created).keys()
    assert json.loads(wrote)["status"] == "OK"
    [line] = read.splitlines()
    assert json.loads(line)["body"] == {"hello": "world"}
    assert json.loads(line)["eid"] == json.loads(wrote)["eid"]
    [line] = read_over_http.splitlines()
    assert json.loads(line)["body"] == {"hello": "from gRPC"}
    assert wrote_by_grpc.split() == ["written", "as", json.loads(line)["eid"]]
    expected = ["greetings", json.loads(wrote_by_http)["eid"], '{"hello":', '"from', 'HTTP"}']
    assert read_by_grpc.split() == expected


def run_session(ports: dict[str, str]) -> list[str]:
    """Run the blocks one after the other in one shell. Returns: what each printed."""
    mark = "-- end of block --"
    script = "set -e\n" + f"\necho; echo '{mark}'\n".join([*SESSION, ""])
    for documented, actual in ports.items():
        script = script.replace(documented, actual)
    (ROOT / "channel.json").unlink(missing_ok=True)
    try:
        done = subprocess.run(
            ["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
    finally:
        (ROOT / "channel.json").unlink(missing_ok=True)
    assert done.returncode == 0, done.stderr
    return [part.strip() for part in done.stdout.split(mark)][: len(SESSION)]


@pytest.mark.parametrize("block", [SHOW, CHECK])
def test_the_commands_for_settings_work(block: str, tmp_path: Path) -> None:
    printed = run_block(block, tmp_path)
    assert "address" in printed or "in order" in printed


def test_a_node_is_looked_after_as_it_says(tmp_path: Path) -> None:
    with broker_process(tmp_path, agent="node"):
        agents, added, channels = run_block(LOOK, tmp_path).splitlines()[1:]
    assert agents.startswith("node ")
    assert added == "Operation completed successfully"
    assert channels.split() == ["AGENT", "|", "ADDRESS"]


def run_block(block: str, directory: Path) -> str:
    """Run a block with the settings of a broker in a directory. Returns: what it printed."""
    done = subprocess.run(
        ["bash", "-c", f"set -e\n{block}"],
        cwd=ROOT,
        env=environment(directory, {}),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_test_command_is_the_one_that_runs_this() -> None:
    assert TEST == "make test\n"
    recipe = subprocess.run(
        ["make", "--dry-run", "test"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "-m pytest" in recipe.stdout


def test_every_file_that_the_readme_links_to_exists() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_promise_is_the_one_that_the_protocol_makes() -> None:
    assert "at least once and in order to a reader that acknowledges or resumes" in README.lower()
