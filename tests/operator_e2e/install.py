"""The installation of the operator, as users do it."""

from tests.operator_e2e.kubectl import Kubectl
from tests.support.nginx import DEPLOY

OPERATOR = "megaphone-operator"
"""The namespace and the Deployment of the operator."""


def install_operator(kubectl: Kubectl) -> None:
    """Install two copies, with exactly the rights that the operator ships with, and wait for them.

    Do nothing if it is installed.
    """
    kubectl("apply", f"--kustomize={DEPLOY / 'operator'}")
    wait = ("rollout", "status", f"deployment/{OPERATOR}", "--timeout=90s")
    kubectl(f"--namespace={OPERATOR}", *wait)
