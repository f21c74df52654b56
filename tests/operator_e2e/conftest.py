"""The cluster that all scenarios share, and what they report."""

import shutil
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.operator_e2e.api import Api
from tests.operator_e2e.cluster import Cluster
from tests.operator_e2e.inside import FOLDER, IS_INSIDE
from tests.operator_e2e.kubectl import Kubectl
from tests.operator_e2e.kubelet.images import ROOT
from tests.operator_e2e.report import LINES

collect_ignore_glob = [] if IS_INSIDE else ["test_*.py"]
KEPT = ROOT / ".operator-e2e"
"""Where the logs of the last run are."""


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    made = Cluster(FOLDER)
    try:
        made.start()
        yield made
    finally:
        made.stop()
        keep_logs(made)


@pytest.fixture
async def api(cluster: Cluster) -> AsyncIterator[Api]:
    async with cluster.api() as api:
        yield api


@pytest.fixture(scope="session")
def kubectl(cluster: Cluster) -> Kubectl:
    return Kubectl(cluster.plane.kubeconfig)


def keep_logs(cluster: Cluster) -> None:
    shutil.rmtree(KEPT, ignore_errors=True)
    KEPT.mkdir()
    (KEPT / ".gitignore").write_text("*\n")
    for log in cluster.logs():
        name = "-".join(log.relative_to(cluster.folder).parts)
        shutil.copy(log, KEPT / name)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if LINES:
        terminalreporter.section("what happened to the events")
        for line in LINES:
            terminalreporter.write_line(line)
