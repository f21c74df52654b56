"""A node of 256 MiB under loads that are far too large for it.

The node survives, its memory stays within its limit and is freed afterwards, it refuses calls only
with codes that clients know, and it serves other clients meanwhile. The test prints how fast it
serves them, but does not judge that, because it depends on the machine too:

    make test ARGS="-s tests/faults/test_weight.py"

`MEGAPHONE_TESTED_LONG=1` makes the largest loads as large as docs/figures.md has them.
"""

import hashlib
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import other_client
from tests.support.process import environment
from tests.support.scenes import eventually
from tests.support.small_node import SmallNode, small_node, starter
from tests.support.weights import (
    CLOSED,
    LOADS,
    MIB,
    OK,
    channels_of_one_connection,
    writes_of_a_mebibyte,
)

LIMIT = 256 * MIB
LIMIT_UNBOUNDED = 320 * MIB
"""For a system that cannot bound the memory of a process, on which the node knows of no limit."""
COMES_BACK_TO = 60 * MIB
"""How much more memory than at the start it may use at the end, because Python keeps some."""
TTL_S = 2
EXPECTED = {
    "unfinished_bodies": {"SENT", "STUCK", CLOSED},
    "gzip_bombs": {"PAYLOAD_TOO_LARGE", "LIMIT_EXCEEDED"},
    "channels": {OK, "LIMIT_EXCEEDED"},
    "channels_of_one_connection": {OK, "LIMIT_EXCEEDED"},
}
"""The ways in which the calls of these loads may end. `WRITES` applies to all other loads."""
WRITES = {OK, "LIMIT_EXCEEDED", "TIMEOUT", "NOT_FOUND", CLOSED}


def sha256_of(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


HEAVY, OTHER = f"mgp_{'h' * 43}", f"mgp_{'o' * 43}"
"""The tokens of a tenant that is a load, and of another one."""
CHANNELS_OF_HEAVY = 2_000
TENANTS = f"""
[auth]
require = ["create"]
[auth.tokens]
heavy = {{ sha256 = "{sha256_of(HEAVY)}", tenant = "heavy", actions = ["create"] }}
other = {{ sha256 = "{sha256_of(OTHER)}", tenant = "other", actions = ["create"] }}
[tenants.heavy]
channels = {CHANNELS_OF_HEAVY}
buffered_bytes = {16 * MIB}
"""


@contextmanager
def served_meanwhile(node: SmallNode, *token: str) -> Iterator[list[float]]:
    """Call the node every 20 ms from another process, which has already had one answer.

    Yields: the answer times, at the end.
    """
    times: list[float] = []
    port = str(node.process.http_port)
    command = [sys.executable, other_client.__file__, port, *token]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline().strip() == other_client.SERVED
        yield times
    finally:
        process.terminate()
        output, _ = process.communicate()
    times += json.loads(output)


@pytest.mark.timeout(180)
@pytest.mark.group("heavy load")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("name", LOADS)
async def test_a_small_node_outlives(name: str, tmp_path: Path) -> None:
    with small_node(tmp_path, LIMIT, channel_ttl_secs=TTL_S, write_timeout_millis=2_000) as node:
        at_start = node.resident()
        with served_meanwhile(node) as times:
            outcomes = await LOADS[name](node.node)
            assert node.is_alive
        peak = node.peak()
        assert peak < (LIMIT_UNBOUNDED if node.group is None else LIMIT)
        assert set(outcomes) <= EXPECTED.get(name, WRITES)
        assert len(times) > 10

        async def has_come_back() -> bool:
            return node.resident() < at_start + COMES_BACK_TO

        await eventually(has_come_back, within_s=30)
        print(
            f"\n{name}: {dict(outcomes)}; memory {at_start // MIB} MiB, at most {peak // MIB},"
            f" afterwards {node.resident() // MIB}; {len(times)} calls of another client, median"
            f" {1000 * statistics.median(times):.1f} ms, slowest {1000 * max(times):.0f} ms"
        )


def test_a_node_in_a_group_has_every_setting(tmp_path: Path) -> None:
    settings: dict[str, object] = {"tls.certificate": "/a", "tls.key": "/b"}
    run = subprocess.run(
        [starter(tmp_path, tmp_path), "config", "show"],
        env=environment(tmp_path, settings),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert (tmp_path / "cgroup.procs").read_text().isdigit()
    assert "megaphone_tls.certificate" in run.stdout
    assert "megaphone_tls.key" in run.stdout


@pytest.mark.timeout(180)
@pytest.mark.group("heavy load")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
async def test_a_tenant_that_is_a_load_takes_nothing_from_another(tmp_path: Path) -> None:
    heavy = {"Authorization": f"Bearer {HEAVY}"}
    (tmp_path / "megaphone.toml").write_text(TENANTS)
    with small_node(tmp_path, LIMIT, channel_ttl_secs=120, write_timeout_millis=2_000) as node:
        with served_meanwhile(node, OTHER) as times:
            writes = await writes_of_a_mebibyte(node.node, heavy)
            creations = await channels_of_one_connection(node.node, heavy)
        assert node.is_alive
        assert node.peak() < (LIMIT_UNBOUNDED if node.group is None else LIMIT)
    assert set(writes) <= WRITES
    assert writes["LIMIT_EXCEEDED"] > writes[OK]
    assert set(creations) == {OK, "LIMIT_EXCEEDED"}
    assert creations[OK] <= CHANNELS_OF_HEAVY
    assert len(times) > 10
