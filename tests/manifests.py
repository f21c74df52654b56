"""Makes `deploy/operator/operator.yaml` of the chart: `python -m tests.manifests`.

Those who use kustomize and those who use Helm get the same objects, and each is written once.
"""

import re
from pathlib import Path

from tests.support.kubernetes_programs import run_program

DEPLOY = Path(__file__).parents[1] / "deploy"
CHART = DEPLOY / "helm" / "megaphone-operator"
MADE = DEPLOY / "operator" / "operator.yaml"
NAME = "megaphone-operator"
"""The name of the release and of its namespace."""
HEAD = """\
# Made of ../helm/megaphone-operator by `python -m tests.manifests`.

"""
TEMPLATES = ("rights", "operator")
SOURCE = re.compile(r"^# Source: .*\n", re.MULTILINE)
BREAKS = re.compile(r"\n+---\n")


def rendered(*options: str, chart: Path = CHART) -> str:
    """Return what Helm makes of the chart. Raises: AssertionError, if Helm refuses."""
    return run_program("helm", "template", NAME, chart, f"--namespace={NAME}", *options)


def operator_yaml() -> str:
    """Return the text of the file."""
    documents = []
    for template in TEMPLATES:
        text = SOURCE.sub("", rendered(f"--show-only=templates/{template}.yaml"))
        documents.append(text.removeprefix("---\n").strip("\n"))
    return HEAD + BREAKS.sub("\n---\n", "\n---\n".join(documents)) + "\n"


if __name__ == "__main__":
    MADE.write_text(operator_yaml())
