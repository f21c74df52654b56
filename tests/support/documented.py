"""Runs the commands of a page of the documentation, and compares what they print with the page.

A command is a block of `bash`. The block after it may say what the command prints, in `json`,
`text` or `http`; there `…` stands for any text.
"""

import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.process import environment

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PRINTED = ("json", "text", "http")
MARK = "-- end of block --"


@dataclass(frozen=True, slots=True)
class Step:
    """A command of a page."""

    command: str
    printed: str | None
    """What the page says that the command prints."""


def steps(page: str) -> Iterator[Step]:
    """Yield the commands of a page."""
    blocks = FENCE.findall(page)
    for (language, text), (next_language, next_text) in zip(
        blocks, [*blocks[1:], ("", "")], strict=True
    ):
        if language == "bash":
            yield Step(text, next_text if next_language in PRINTED else None)


def run_session(
    commands: Sequence[str],
    replacements: Mapping[str, str],
    folder: Path = ROOT,
    timeout_s: float = 60,
) -> list[str]:
    """Run commands one after the other in one shell. Returns: what each printed."""
    script = "set -e\n" + f"\necho; echo '{MARK}'\n".join([*commands, ""])
    for documented, actual in replacements.items():
        script = script.replace(documented, actual)
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env=environment(folder, {}),
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [part.strip() for part in done.stdout.split(MARK)][: len(commands)]


def assert_printed(step: Step, printed: str) -> None:
    """Check that a command printed what the page says."""
    if step.printed is None:
        return
    parts = step.printed.strip().split("…")
    pattern = ".*".join(re.escape(part) for part in parts)
    text = printed.replace("\r\n", "\n")
    assert re.fullmatch(pattern, text, re.DOTALL), (
        f"{step.command}\nprinted\n{text}\nnot\n{step.printed}"
    )
