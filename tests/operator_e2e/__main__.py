"""The end-to-end tests of the operator: `make operator-e2e`, with options of pytest.

They run in namespaces of their own for processes, mounts and the network. So nothing that they
start reaches another machine, or lives longer than they do.
"""

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.operator_e2e.inputs import note_pass
from tests.operator_e2e.inside import INSIDE
from tests.operator_e2e.programs import build_control_plane, missing
from tests.support.kubernetes_programs import programs

AT_MOST_S = 2400
LONGEST_LINE = 2**20
NO_TESTS = 5
"""The exit code of pytest when it finds no test."""
HERE = Path(__file__).parent
CLUSTERS = {
    "1": (
        "takeover",
        "install",
        "page",
        "deploy",
        "rolling",
        "contract",
        "store",
        "encryption",
        "autoscaling",
        "rights",
    ),
    "2": ("own_namespace", "accidents", "life", "rights"),
}
"""The clusters of Kubernetes, and the scenarios of each. The clusters run side by side, because
scenarios wait most of the time. The takeover is first, because it begins with the resource
definition of the former operator. The rights are last, because what the operator has done before
shows whether they were enough.
"""
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
    code = asyncio.run(run_clusters(arguments))
    if code == 0 and not arguments:
        note_pass()
    sys.exit(code)


async def run_clusters(arguments: list[str]) -> int:
    """Run all clusters, and print what each says. Returns: the exit code."""
    codes = await asyncio.gather(*(run_cluster(name, arguments) for name in CLUSTERS))
    # With options that choose tests, a cluster may have none of them.
    return max((code for code in codes if code != NO_TESTS), default=NO_TESTS)


async def run_cluster(name: str, arguments: list[str]) -> int:
    files = [str(HERE / f"test_{scenario}.py") for scenario in CLUSTERS[name]]
    options = ["-n", "0", "-p", "no:randomly", "--verbose", "--durations=0", "--durations-min=3"]
    tests = ["-m", "pytest", *options, *arguments, *files]
    limit = ["timeout", "--foreground", "--signal=KILL", str(AT_MOST_S)]
    command = [*limit, "unshare", *NAMESPACES, sys.executable, *tests]
    began = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        *command,
        env=os.environ | {INSIDE: name},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        limit=LONGEST_LINE,
    )
    assert process.stdout is not None
    async for line in process.stdout:
        print(f"{name}| {line.decode(errors='replace')}", end="", flush=True)
    code = await process.wait()
    print(f"-- Cluster {name} took {time.monotonic() - began:.0f} s", flush=True)
    return code


if __name__ == "__main__":
    main(sys.argv[1:])
