"""The floor of coverage: how many of the branches of a package its own tests reach.

`make coverage` runs those tests and then this. Tests through the faces do not count: a branch that
only they reach can break without a test that says where.
"""

import json
import sys
from collections import Counter
from pathlib import Path

import coverage

FLOOR_PERCENT = {"core": 95, "store": 95, "wire": 95}
"""A floor only rises."""
REPORT = Path(".venv/coverage/report.json")


def main() -> int:
    measured = coverage.Coverage()
    measured.combine()
    measured.json_report(outfile=str(REPORT))
    reached: Counter[str] = Counter()
    of: Counter[str] = Counter()
    files = json.loads(REPORT.read_text())["files"]
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
    sys.exit(main())
