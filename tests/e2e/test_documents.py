"""The commands and programs on the pages of docs/ work, and each link leads to something."""

import http.client
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.documented import ROOT, assert_printed, steps
from tests.support.process import BrokerProcess, broker_process, environment

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")]
LINK = re.compile(r"\]\((?!https?:)([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def commands(page: str) -> list[str]:
    return [step.command for step in steps((DOCS / page).read_text())]


def run(command: str, folder: Path) -> str:
    """Run a command with the settings of a broker in a folder. Returns: what it printed."""
    done = subprocess.run(
        ["bash", "-c", f"set -e\n{command}"],
        cwd=ROOT,
        env=environment(folder, {}),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_commands_for_settings_work(tmp_path: Path) -> None:
    show, check = commands("settings.md")
    assert "address = " in run(show, tmp_path)
    assert "in order" in run(check, tmp_path)


def test_a_node_is_looked_after_as_the_page_says(tmp_path: Path) -> None:
    look, *_ = commands("operating.md")
    with broker_process(tmp_path, agent="node"):
        agents, added, channels = run(look, tmp_path).splitlines()[1:]
    assert agents.startswith("node ")
    assert added == "Operation completed successfully"
    assert channels.split() == ["AGENT", "|", "ADDRESS"]


def test_a_channel_is_shown_as_the_page_has_it(tmp_path: Path) -> None:
    _, listings, show = steps((DOCS / "operating.md").read_text())
    with (
        broker_process(tmp_path, agent="node", agent_warmup_secs=0) as broker,
        reading(broker) as consumer,
    ):
        listed = run(listings.command, tmp_path).splitlines()
        shown = run(show.command.replace("$CONSUMER", consumer), tmp_path)
    assert show.printed is not None
    assert_printed(show, shown.strip())
    blocked_head, head, row = listed
    assert blocked_head.split(" | ")[0].strip() == head.split(" | ")[0].strip() == "ID"
    assert row.rstrip().endswith(consumer)


@contextmanager
def reading(broker: BrokerProcess) -> Iterator[str]:
    """Let a client read a channel with three events, of which its window lets it have one."""
    made = http.client.HTTPConnection("127.0.0.1", broker.http_port)

    def post(route: str, body: bytes) -> dict[str, str]:
        made.request("POST", route, body, {"Content-Type": "application/json"})
        answer: dict[str, str] = json.loads(made.getresponse().read())
        return answer

    channel = post("/create", b'{"label": "orders"}')
    for _ in range(3):
        post(f"/write/{channel['producerAddress']}/s", b"1")
    read = http.client.HTTPConnection("127.0.0.1", broker.http_port)
    try:
        read.request(
            "GET", f"/read/{channel['consumerAddress']}?ack=explicit&window=1&reader=phone"
        )
        answer = read.getresponse()
        answer.readline()
        yield channel["consumerAddress"]
        answer.close()
    finally:
        read.close()
        made.close()


def test_the_program_with_stubs_reads_the_event_that_it_writes(tmp_path: Path) -> None:
    [program] = re.findall(r"```python\n(.*?)```", (DOCS / "grpc.md").read_text(), re.DOTALL)
    with broker_process(tmp_path) as broker:
        program = program.replace("localhost:3001", broker.grpc_target)
        printed = subprocess.check_output([sys.executable, "-c", program], text=True)
    written, read = printed.splitlines()
    event_id = written.removeprefix("written as ")
    assert read == f'greetings {event_id} {{"hello": "gRPC"}}'


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_each_link_leads_to_a_file_and_to_a_heading_in_it(page: Path) -> None:
    for link in LINK.findall(FENCE.sub("", page.read_text())):
        path, _, heading = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if heading:
            assert heading in anchors(target.read_text()), link


def anchors(page: str) -> set[str]:
    """Return the anchors of the headings of a page, as hosts of repositories make them."""
    headings = HEADING.findall(FENCE.sub("", page))
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
