"""The rights of the operator: what it ships with was enough for all scenarios before, and what it
does without one of them."""

import json

import pytest

from tests.operator_e2e.cluster import until
from tests.operator_e2e.demo import Demo
from tests.operator_e2e.install import OPERATOR
from tests.operator_e2e.kubectl import Kubectl

pytestmark = pytest.mark.timeout(300)
WITHIN_S = 60.0


async def test_the_operator_was_never_refused_a_right(operator: str, kubectl: Kubectl) -> None:
    """The logs have what the operator has done in the scenarios before."""
    pods = kubectl(f"--namespace={operator}", "get", "pods", "--output=name").split()
    for pod in pods:
        log = kubectl(f"--namespace={operator}", "logs", pod)
        refused = [line for line in log.splitlines() if "is forbidden" in line]
        # An API server that has just started knows no rights for a second.
        assert [line for line in refused if "retry" not in line and "lease" not in line] == []


async def test_a_missing_right_is_told(demo: Demo, kubectl: Kubectl) -> None:
    """Without the right to make budgets a pass fails, and the condition says so."""
    role = json.loads(kubectl("get", "clusterrole", OPERATOR, "--output=json"))
    rules = [rule for rule in role["rules"] if "policy" not in rule["apiGroups"]]
    patch = json.dumps({"rules": rules})
    kubectl("patch", "clusterrole", OPERATOR, "--type=merge", f"--patch={patch}")
    try:
        demo.apply(replicas=1)
        await until(lambda: names_missing_right(demo), WITHIN_S)
    finally:
        whole = json.dumps({"rules": role["rules"]})
        kubectl("patch", "clusterrole", OPERATOR, "--type=merge", f"--patch={whole}")


async def names_missing_right(demo: Demo) -> bool:
    degraded = await demo.condition("Degraded")
    is_told = "poddisruptionbudgets" in degraded.get("message", "")
    return degraded.get("reason") == "ReconcileFailed" and is_told
