"""Prometheus as a child process, with the rules of deploy/prometheus, hurried."""

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest

from tests.support.ports import free_port

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "megaphone.rules.yml"
PROMETHEUS = shutil.which("prometheus")
PROMTOOL = shutil.which("promtool")
needs_prometheus = pytest.mark.skipif(
    PROMETHEUS is None or PROMTOOL is None, reason="needs Prometheus and promtool"
)

EVERY_S = 0.3
"""How often Prometheus asks the nodes, and evaluates its rules."""
WINDOW = "3s"
"""What the hurried rules look back on."""
LASTING = "100ms"
"""How long something must last for them."""
WITHIN_S = 20.0
LOOKS_BACK = re.compile(r"\[\d+[mh]\]")
WAITS = re.compile(r"\bfor: \d+m\b")


def hurried(rules: str) -> str:
    """Return rules that look back on seconds in place of minutes, and hardly wait."""
    return LOOKS_BACK.sub(f"[{WINDOW}]", WAITS.sub(f"for: {LASTING}", rules))


@dataclass(slots=True)
class Prometheus:
    """A running Prometheus. Its calls block."""

    url: str

    def wait_until_it_knows(self, count: int) -> None:
        """Wait until so many nodes have answered it: a counter that begins above 0 has not
        increased. It asks no node before some seconds are over."""
        deadline = time.monotonic() + WITHIN_S
        while len(self.query("up == 1")) < count:
            assert time.monotonic() < deadline, self.call("targets")
            time.sleep(0.05)

    def call(self, path: str, **parameters: object) -> Any:
        query = f"?{urlencode(parameters)}" if parameters else ""
        with urlopen(f"{self.url}/api/v1/{path}{query}", timeout=WITHIN_S) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the samples of an expression now."""
        found: list[dict[str, Any]] = self.call("query", query=expression)["result"]
        return found

    def firing(self, alert: str) -> list[dict[str, Any]]:
        """Return the alerts of a name that fire, with their labels and annotations."""
        alerts = self.call("alerts")["alerts"]
        return [
            one
            for one in alerts
            if one["labels"]["alertname"] == alert and one["state"] == "firing"
        ]

    def wait_until_fires(
        self, alert: str, provoke: Callable[[], object] = lambda: None, **labels: str
    ) -> Mapping[str, str]:
        """Wait until an alert with these labels fires, and provoke it all the time. Returns: its
        annotations."""
        deadline = time.monotonic() + WITHIN_S
        while True:
            provoke()
            for one in self.firing(alert):
                if labels.items() <= one["labels"].items():
                    annotations: dict[str, str] = one["annotations"]
                    return annotations
            assert time.monotonic() < deadline, (alert, labels, self.call("alerts"))
            time.sleep(0.05)


@contextmanager
def prometheus(folder: Path, targets: Mapping[str, str], rules: str = "") -> Iterator[Prometheus]:
    """Run Prometheus on a free port, and wait until all targets have answered it. It is killed at
    the end.

    `targets` are hosts and ports by the names that become the label `instance`.
    """
    assert PROMETHEUS is not None
    folder.mkdir()
    (folder / "rules.yml").write_text(rules)
    (folder / "prometheus.yml").write_text(json.dumps(configuration(targets)))
    port = free_port()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                PROMETHEUS,
                f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/data",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        wait_until_it_is_ready(process, f"http://127.0.0.1:{port}", folder / "log")
        started = Prometheus(f"http://127.0.0.1:{port}")
        started.wait_until_it_knows(len(targets))
        yield started
    finally:
        process.kill()
        process.wait()


def configuration(targets: Mapping[str, str]) -> dict[str, Any]:
    every = f"{int(1000 * EVERY_S)}ms"
    watched = [
        {"targets": [address], "labels": {"instance": name}} for name, address in targets.items()
    ]
    return {
        "global": {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every},
        "rule_files": ["rules.yml"],
        "scrape_configs": [{"job_name": "megaphone", "static_configs": watched}],
    }


def wait_until_it_is_ready(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    deadline = time.monotonic() + WITHIN_S
    while True:
        assert process.poll() is None, log.read_text()
        try:
            with urlopen(f"{url}/-/ready", timeout=WITHIN_S):
                return
        except OSError:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
