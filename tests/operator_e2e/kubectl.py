"""kubectl and helm, called for one cluster."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.support.kubernetes_programs import programs

CALL_S = 130


@dataclass(frozen=True, slots=True)
class Kubectl:
    """Calls kubectl and helm for a cluster."""

    kubeconfig: Path

    def __call__(self, *arguments: str, text: str = "") -> str:
        """Run kubectl. Returns: what it printed. Raises: AssertionError, if it fails."""
        return self._run("kubectl", *arguments, text=text)

    def helm(self, *arguments: str) -> str:
        return self._run("helm", *arguments, text="")

    def apply(self, *objects: object) -> None:
        """Apply objects, each given as data."""
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
        self("apply", "--filename=-", text=text)

    def _run(self, program: str, *arguments: str, text: str) -> str:
        done = subprocess.run(
            [str(programs() / program), f"--kubeconfig={self.kubeconfig}", *arguments],
            input=text,
            capture_output=True,
            text=True,
            timeout=CALL_S,
        )
        assert done.returncode == 0, f"{program} {' '.join(arguments)}: {done.stderr}"
        return done.stdout
