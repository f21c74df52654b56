"""The API server takes what kustomize and Helm install, and what docs/kubernetes.md applies."""

import re

import pytest

from tests.manifests import rendered
from tests.operator_e2e.kubectl import Kubectl
from tests.operator_e2e.kubelet.images import ROOT
from tests.support.nginx import DEPLOY

OPERATOR = DEPLOY / "operator"
BY_SERVER = ("apply", "--server-side", "--force-conflicts", "--dry-run=server")


@pytest.fixture
def server(kubectl: Kubectl) -> Kubectl:
    """A server that has the namespace and the definition, without which nothing else is judged."""
    for name in ("namespace", "crd"):
        kubectl("apply", f"--filename={OPERATOR / f'{name}.yaml'}")
    kubectl("wait", "--for=condition=Established", "crd/megaphones.d71.dev", "--timeout=60s")
    return kubectl


def test_the_server_takes_the_chart_for_one_namespace(server: Kubectl) -> None:
    taken = server(*BY_SERVER, "--filename=-", text=rendered("--set=ownNamespaceOnly=true"))
    assert "deployment.apps/megaphone-operator serverside-applied (server dry run)" in taken


def test_the_server_takes_what_kustomize_makes(server: Kubectl) -> None:
    assert "(server dry run)" in server(*BY_SERVER, f"--kustomize={OPERATOR}")


def test_the_server_takes_the_cluster_of_the_page(server: Kubectl) -> None:
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    [cluster] = re.findall(r"```yaml\n(apiVersion: d71.dev.*?)```", page, re.DOTALL)
    assert "demo" in server(*BY_SERVER, "--filename=-", text=cluster)
    [scaler] = re.findall(r"```yaml\n(apiVersion: autoscaling.*?)```", page, re.DOTALL)
    assert "demo" in server(*BY_SERVER, "--filename=-", text=scaler)
    wrong = cluster.replace("replicas: 3", "replicas: 3\n  settings: {drain_target: x}")
    with pytest.raises(AssertionError, match=r"the operator sets .*drain_\*"):
        server(*BY_SERVER, "--filename=-", text=wrong)
