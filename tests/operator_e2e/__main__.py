"""The end-to-end tests of the operator: `make operator-e2e`, with options of pytest.

They run in namespaces of their own for processes, mounts and the network. So nothing that they
start reaches another machine, or lives longer than they do.
"""

import os
import subprocess
import sys
from pathlib import Path

from tests.operator_e2e.inputs import note_pass
from tests.operator_e2e.inside import INSIDE
from tests.operator_e2e.programs import build_control_plane, missing
from tests.support.kubernetes_programs import programs

AT_MOST_S = 1500
HERE = Path(__file__).parent
SCENARIOS = ("takeover", "install", "page", "deploy", "rolling", "contract", "accidents", "life")
"""The takeover is first, because it begins with the resource definition of the former operator."""
NAMESPACES = ("--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")


def main(arguments: list[str]) -> None:
    """Build what is missing, and run the tests. Raises: SystemExit."""
    if reason := missing():
        sys.exit(f"The end-to-end tests of the operator cannot run: {reason}")
    try:
        build_control_plane()
        programs()
    except subprocess.SubprocessError as error:
        sys.exit(f"The programs of Kubernetes cannot be made: {error}")
    files = [str(HERE / f"test_{name}.py") for name in SCENARIOS]
    tests = ["-m", "pytest", "-n", "0", "-p", "no:randomly", "--verbose", *arguments, *files]
    limit = ["timeout", "--foreground", "--signal=KILL", str(AT_MOST_S)]
    command = [*limit, "unshare", *NAMESPACES, sys.executable, *tests]
    code = subprocess.run(command, env=os.environ | {INSIDE: "1"}).returncode
    if code == 0 and not arguments:
        note_pass()
    sys.exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
