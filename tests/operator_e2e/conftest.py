"""The cluster that all scenarios share, and what they report."""

import shutil
import subprocess
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import suppress

import pytest

from tests.operator_e2e.api import Api, name_of, path_of
from tests.operator_e2e.cluster import Cluster
from tests.operator_e2e.demo import Demo
from tests.operator_e2e.inside import CLUSTER, FOLDER, IS_INSIDE
from tests.operator_e2e.install import OPERATOR, install_operator
from tests.operator_e2e.kubectl import Kubectl
from tests.operator_e2e.kubelet.images import ROOT
from tests.operator_e2e.report import LINES

collect_ignore_glob = [] if IS_INSIDE else ["test_*.py"]
EVERYTHING = "megaphones,nodes,pods,deployments,endpointslices,leases"
KEPT = ROOT / ".operator-e2e" / CLUSTER
"""Where the logs of the last run of this cluster are."""


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


@pytest.fixture(scope="session")
def operator(kubectl: Kubectl) -> str:
    """Install the operator. Returns: its namespace."""
    install_operator(kubectl)
    return OPERATOR


@pytest.fixture
async def demo(operator: str, api: Api, kubectl: Kubectl) -> AsyncIterator[Demo]:
    """Give a test a namespace for a cluster of nodes. At its end both are deleted."""
    made = await api.create(path_of("namespaces"), {"metadata": {"generateName": "demo-"}})
    demo = Demo(api, kubectl, name_of(made))
    yield demo
    demo.call("delete", "megaphone", "--all", "--wait=false")
    await api.delete(path_of("namespaces", None, demo.namespace))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Function, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep what the API server says when a scenario fails, beside the logs."""
    report = yield
    kubectl = item.funcargs.get("kubectl")
    if report.when == "call" and report.failed and isinstance(kubectl, Kubectl):
        with suppress(AssertionError, subprocess.SubprocessError):
            shown = kubectl("get", "--all-namespaces", "--output=wide", EVERYTHING)
            described = kubectl("get", "--all-namespaces", "--output=yaml", "megaphones")
            (FOLDER / f"state-{item.name}.log").write_text(shown + described)
    return report


def keep_logs(cluster: Cluster) -> None:
    shutil.rmtree(KEPT, ignore_errors=True)
    KEPT.mkdir(parents=True)
    (KEPT / ".gitignore").write_text("*\n")
    for log in cluster.logs():
        name = "-".join(log.relative_to(cluster.folder).parts)
        shutil.copy(log, KEPT / name)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if LINES:
        terminalreporter.section("what happened to the events")
        for line in LINES:
            terminalreporter.write_line(line)
