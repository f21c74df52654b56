"""The files of deploy/ as they are, on a cluster: nodes behind nginx are replaced under load."""

import asyncio
import shutil
from pathlib import Path

import pytest

from tests.operator_e2e.cluster import Cluster
from tests.operator_e2e.kubectl import Kubectl
from tests.operator_e2e.load import load
from tests.support.nginx import DEPLOY

pytestmark = pytest.mark.timeout(300)
HOST = "megaphone-proxy.default.svc.cluster.local"
WITHIN = "--timeout=120s"


@pytest.fixture
def deployed(cluster: Cluster, kubectl: Kubectl, tmp_path: Path) -> str:
    """Apply deploy/ as docs/deploy.md says. Returns: the name of the folder."""
    folder = tmp_path / "deploy"
    shutil.copytree(DEPLOY, folder)
    (folder / "node-secret.env").write_text("secret=the-secret-of-the-nodes-0123456789\n")
    kubectl("apply", f"--kustomize={folder}")
    for name in ("megaphone", "megaphone-proxy"):
        kubectl("rollout", "status", f"deployment/{name}", WITHIN)
    return str(folder)


async def test_nodes_are_replaced_under_load(deployed: str, kubectl: Kubectl) -> None:
    async with load(f"http://{HOST}:3000", f"{HOST}:3001") as clients:
        clients.begin()
        await asyncio.to_thread(kubectl, "rollout", "restart", "deployment/megaphone")
        await asyncio.to_thread(kubectl, "rollout", "status", "deployment/megaphone", WITHIN)
    clients.judge("deploy/: three nodes are restarted by `kubectl rollout restart`")
    kubectl("delete", f"--kustomize={deployed}", WITHIN)
