"""The floor of coverage: how many of the branches of a package its own tests reach.

    python -m tests.coverage_floor -n 4
    python -m tests.coverage_floor --compare

The first form runs all tests, and then compares if all of them passed; the arguments are those of
pytest. The second form only compares what the last run measured. `tests.measuring` says what
counts.
"""

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import coverage

FLOOR_PERCENT = {"core": 95, "store": 95, "wire": 95}
"""A floor only rises."""
FOLDER = Path(".venv/coverage")


def run_tests(arguments: list[str]) -> int:
    """Run the tests and measure. Returns: the exit code of pytest."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    command = [sys.executable, "-m", "pytest", "-p", "tests.measuring", *arguments]
    return subprocess.run(command).returncode


def compare() -> int:
    """Compare what was measured with the floor. Returns: 1 if it is lower, otherwise 0."""
    measured = coverage.Coverage()
    measured.combine()
    report = FOLDER / "report.json"
    measured.json_report(outfile=str(report))
    reached: Counter[str] = Counter()
    of: Counter[str] = Counter()
    files = json.loads(report.read_text())["files"]
    for name, file in files.items():
        package = Path(name).parts[1]
        reached[package] += file["summary"]["covered_branches"]
        of[package] += file["summary"]["num_branches"]
    low = {name for name, floor in FLOOR_PERCENT.items() if 100 * reached[name] < floor * of[name]}
    for name, floor in FLOOR_PERCENT.items():
        percent = 100 * reached[name] / of[name]
        print(f"{name}: {percent:.1f} % of {of[name]} branches; the floor is {floor} %")
    if low:
        measured.report(include=[f"megaphone/{name}/*" for name in low], show_missing=True)
    return 1 if low else 0


if __name__ == "__main__":
    only_compare = sys.argv[1:] == ["--compare"]
    sys.exit((0 if only_compare else run_tests(sys.argv[1:])) or compare())
