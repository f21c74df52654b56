"""What docs/store.md says is so: its commands, its settings, its lines, and the tests it names."""

import re
import subprocess
from pathlib import Path
from urllib.request import urlopen

from megaphone.config import load
from megaphone.store.redis.connection import Server
from megaphone.store.redis.requirements import CLUSTER_RIGHTS, Facts, rights_of
from megaphone.store.redis.url import StoreUrl, Topology
from tests.support.process import broker_process, environment
from tests.support.redis_fixtures import own_server
from tests.support.redis_server import RedisServer

__all__ = ["own_server"]

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "store.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_the_store_is_checked_as_it_says(own_server: RedisServer, tmp_path: Path) -> None:
    [command] = blocks("bash")
    command = command.replace("127.0.0.1:6379", f"127.0.0.1:{own_server.port}")
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=ROOT,
        env=environment(tmp_path, {}),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "201 means" in done.stdout


def test_the_settings_are_settings(tmp_path: Path) -> None:
    one, cluster = blocks("toml")
    (tmp_path / "megaphone.toml").write_text(cluster)
    assert StoreUrl.parse(load(tmp_path, {}).settings.store).topology is Topology.CLUSTER
    (tmp_path / "megaphone.toml").write_text(one)
    settings = load(tmp_path, {}).settings
    assert StoreUrl.parse(settings.store).username == "megaphone"
    assert settings.store_wait_replicas == 1
    for name in re.findall(r"^\| `(store\w*)` \|", PAGE, re.MULTILINE):
        assert hasattr(settings, name)


def test_the_rights_are_those_that_a_node_asks_for() -> None:
    assert f"ACL SETUSER megaphone on >PASSWORD {rights_of('megaphone')}\n" in PAGE


def test_the_rights_in_a_cluster_are_those_that_a_node_asks_for() -> None:
    assert f"`{' '.join(CLUSTER_RIGHTS)}`" in PAGE


def test_the_line_of_the_log_is_what_a_node_writes() -> None:
    facts = Facts(
        server=Server("redis", "7.0.15", "standalone", is_master=True),
        max_memory=0,
        used_memory=0,
        has_aof=True,
        append_fsync="everysec",
        has_snapshots=False,
        replicas=1,
    )
    assert f"\n{facts.line(1)}\n" in PAGE


def test_the_metric_is_what_a_node_says(own_server: RedisServer, tmp_path: Path) -> None:
    [line] = re.findall(r"^(megaphone_store_info\{.*\}) 1$", PAGE, re.MULTILINE)
    own_server.call("CONFIG", "SET", "appendonly", "yes")
    with (
        broker_process(tmp_path, store=own_server.text_url) as broker,
        urlopen(f"{broker.url}/metrics") as answer,
    ):
        [found] = [one for one in answer.read().decode().splitlines() if "store_info{" in one]
    server = re.search('server="(.*?)"', found)
    assert server is not None
    assert f"{line} 1" == found.replace(server[1], "redis 7.0.15").replace(
        'wait_replicas="0"', 'wait_replicas="1"'
    )


def test_each_test_that_it_names_is_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert len(named) > 10
    source = "\n".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    assert {name for name in named if f"def {name}(" not in source} == set()


def test_each_file_that_it_names_is_there() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", PAGE)
    folders = re.findall(r"`(deploy/[\w./-]+)`", PAGE) + re.findall(r"-[fk] (deploy/\S+)", PAGE)
    assert links
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []
    assert [folder for folder in folders if not (ROOT / folder).exists()] == []
