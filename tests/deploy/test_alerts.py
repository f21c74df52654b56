"""The files for Prometheus and Grafana agree with each other, with the nodes and with the page."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from megaphone_operator.metrics import Metrics
from tests.dashboard import DASHBOARD
from tests.e2e.test_documents import anchors
from tests.support.build import pure_only
from tests.support.documented import ROOT
from tests.support.prometheus import DEPLOY, PROMTOOL, RULES, hurried, needs_prometheus

COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
PAGE = (ROOT / "docs" / "alerts.md").read_text()
ALERTS: list[dict[str, Any]] = [
    rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
]
NAMES = [alert["alert"] for alert in ALERTS]


def promtool(*words: str | Path) -> None:
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_prometheus
def test_prometheus_takes_the_configuration_and_its_rules() -> None:
    promtool("check", "config", DEPLOY / "prometheus" / "prometheus.yml")
    promtool("check", "rules", "--lint-fatal", RULES)


@needs_prometheus
def test_each_alert_fires_when_it_should_and_only_then() -> None:
    tests = DEPLOY / "prometheus" / "megaphone.test.yml"
    promtool("test", "rules", tests)
    expected = [
        case["alertname"]
        for test in yaml.safe_load(tests.read_text())["tests"]
        for case in test["alert_rule_test"]
        if case["exp_alerts"]
    ]
    assert set(expected) == set(NAMES)


@needs_prometheus
def test_the_tests_of_incidents_hurry_each_rule(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yml"
    rules.write_text(hurried(RULES.read_text()))
    promtool("check", "rules", rules)
    assert not re.search(r"\[\d+[mh]\]|for: \d+m\b", rules.read_text())


@pytest.mark.parametrize("alert", ALERTS, ids=NAMES)
def test_each_alert_says_how_bad_it_is_and_has_a_runbook(alert: dict[str, Any]) -> None:
    name = alert["alert"]
    assert alert["labels"]["severity"] in ("critical", "warning")
    assert alert["annotations"]["summary"].endswith(".")
    assert alert["annotations"]["runbook"] == f"docs/alerts.md#{name.lower()}"
    assert name.lower() in anchors(PAGE)
    chapter = re.split(r"^##+ ", PAGE.split(f"\n### {name}\n")[1], flags=re.MULTILINE)[0]
    for part in ("Users notice", "Find it", "Do"):
        assert f"- **{part}:** " in chapter, (name, part)


def test_the_page_has_no_alert_that_does_not_exist() -> None:
    assert set(re.findall(r"\bMegaphone[A-Z]\w+", PAGE)) == set(NAMES)
    assert re.findall(r"^### (.+)$", PAGE, re.MULTILINE) == NAMES


def test_the_operator_has_the_metrics_of_its_alerts() -> None:
    metrics = Metrics()
    condition = {"type": "Degraded", "status": "True"}
    metrics.note_status("cluster", {"conditions": [condition], "channelsToMove": 0})
    text = metrics.render().decode()
    for alert in ALERTS:
        for selector in re.findall(r"megaphone_operator_\w+(?:\{.*?\})?", alert["expr"]):
            assert f"\n{selector.replace(', ', ',')}" in text, alert["alert"]


def test_the_panels_that_the_page_names_exist() -> None:
    titles = {panel["title"] for panel in DASHBOARD["panels"]}
    named = set(re.findall(r"[Pp]anel \*(.+?)\*", " ".join(PAGE.split())))
    assert named
    assert named <= titles


@pure_only("the source is hidden from these tests")
def test_the_log_lines_that_the_page_quotes_exist() -> None:
    quoted = re.findall(r"a line `(.+?)`", " ".join(PAGE.split()))
    code = "".join(path.read_text() for path in (ROOT / "megaphone").rglob("*.py"))
    assert len(quoted) > 3
    for line in quoted:
        assert f'"{line}' in code, line


# -- What compose mounts


def mounts(service: str) -> Iterator[tuple[Path, str]]:
    """Yield each folder or file of deploy/ that a service gets, and where it gets it."""
    for volume in COMPOSE["services"][service]["volumes"]:
        source, target = volume.split(":")[:2]
        if source.startswith("."):
            yield DEPLOY / source, target


def test_prometheus_and_grafana_get_their_files() -> None:
    for service in ("prometheus", "grafana"):
        for source, _ in mounts(service):
            assert source.exists(), source
    rules = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())["rule_files"]
    assert [f"/etc/prometheus/{name}" for name in rules] == [
        target for source, target in mounts("prometheus") if source == RULES
    ]
    [(folder, mounted)] = [one for one in mounts("grafana") if one[0].name == "dashboards"]
    provider = folder.parent / "provisioning" / "dashboards" / "megaphone.yml"
    assert yaml.safe_load(provider.read_text())["providers"][0]["options"] == {"path": mounted}
    home = COMPOSE["services"]["grafana"]["environment"][
        "GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"
    ]
    assert (folder / home.removeprefix(mounted + "/")).is_file()


def test_grafana_asks_the_prometheus_that_asks_the_nodes() -> None:
    source = DEPLOY / "grafana" / "provisioning" / "datasources" / "prometheus.yml"
    [database] = yaml.safe_load(source.read_text())["datasources"]
    host, port = database["url"].removeprefix("http://").split(":")
    assert COMPOSE["services"][host]["ports"] == [f"127.0.0.1:{port}:{port}"]
    [job] = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    [nodes] = job["dns_sd_configs"]
    assert set(nodes["names"]) <= set(COMPOSE["services"])


def test_strangers_reach_neither_of_them_and_nobody_can_log_in() -> None:
    for service in ("prometheus", "grafana"):
        one = COMPOSE["services"][service]
        assert all(port.startswith("127.0.0.1:") for port in one["ports"])
        assert re.fullmatch(r"[a-z]+/[a-z]+:v?\d+\.\d+\.\d+", one["image"])
    environment = COMPOSE["services"]["grafana"]["environment"]
    assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert environment["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
