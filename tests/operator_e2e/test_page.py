"""A user follows docs/kubernetes.md: a cluster from nothing, an upgrade, another size."""

import asyncio
import re
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.operator_e2e.demo import Demo
from tests.operator_e2e.kubelet.images import ROOT
from tests.support.kubernetes_programs import programs

pytestmark = pytest.mark.timeout(300)

PAGE = (ROOT / "docs" / "kubernetes.md").read_text()


def command(begin: str) -> list[str]:
    """Return the words of the command of the page that begins like this, without `kubectl`."""
    [line] = re.findall(rf"^kubectl ({re.escape(begin)}.*)$", PAGE, re.MULTILINE)
    return shlex.split(line)


@contextmanager
def watched(demo: Demo, lines: Path) -> Iterator[None]:
    """Let kubectl write the state of the cluster, as the page does it, as long as this lasts."""
    files = [f"--kubeconfig={demo.kubectl.kubeconfig}", f"--namespace={demo.namespace}"]
    with lines.open("w") as out:
        process = subprocess.Popen(
            [programs() / "kubectl", *files, *command("get megaphone -w -o wide")], stdout=out
        )
        try:
            yield
        finally:
            process.terminate()
            process.wait()


def columns(line: str) -> list[str]:
    return re.split(r" {2,}", line.strip())


async def test_the_page_leads_from_nothing_to_an_upgrade(demo: Demo, tmp_path: Path) -> None:
    [cluster] = re.findall(r"```yaml\n(apiVersion: d71.dev.*?)```", PAGE, re.DOTALL)
    file = tmp_path / "demo.yaml"
    file.write_text(cluster)
    apply = [word.replace("demo.yaml", str(file)) for word in command("apply -f")]
    await asyncio.to_thread(demo.call, *apply)
    await demo.settled()
    seen = tmp_path / "seen"
    with watched(demo, seen):
        await asyncio.to_thread(demo.call, *command("patch"))
        await demo.settled()
        await asyncio.to_thread(demo.call, *command("scale"))
        await demo.settled()
    head, *rows = map(columns, seen.read_text().splitlines())
    shown = PAGE.split("```text\n")[2].splitlines()[0]
    assert head == columns(shown)
    states = [dict(zip(head, row, strict=False)) for row in rows]
    assert {"idle", "upgrade"} <= {state["STATE"] for state in states}
    last = states[-1]
    assert [last[name] for name in ("NODES", "READY", "NEW", "STATE")] == ["5", "5", "5", "idle"]
