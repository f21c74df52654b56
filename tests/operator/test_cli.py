"""The command: its options, what it finds out by itself, and what it says if it cannot start."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from megaphone_operator.cli import parser, read_resolv_conf


@pytest.mark.parametrize(
    ("text", "servers", "domain"),
    [
        (
            "search a.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.96.0.10\n",
            ["10.96.0.10"],
            "cluster.local",
        ),
        (
            "nameserver fd00::a\nnameserver 1.1.1.1\nsearch ns.svc.k8s.example.org\n",
            ["fd00::a", "1.1.1.1"],
            "k8s.example.org",
        ),
        ("# nothing\nsearch example.org\noptions ndots:5\n", [], None),
    ],
)
def test_a_pod_knows_its_name_server_and_its_domain(
    tmp_path: Path, text: str, servers: list[str], domain: str | None
) -> None:
    file = tmp_path / "resolv.conf"
    file.write_text(text)
    assert read_resolv_conf(file) == (servers, domain)


def test_without_that_file_nothing_is_known(tmp_path: Path) -> None:
    assert read_resolv_conf(tmp_path / "none") == ([], None)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--address", "8080"], "'8080' is not HOST:PORT, such as 0.0.0.0:8080"),
        (["--address", "host:99999"], "'host:99999' is not HOST:PORT"),
        (["--kubeconfig", "/nowhere/config"], "there is no file '/nowhere/config'"),
        (["--log-level", "loud"], "invalid choice: 'loud'"),
    ],
)
def test_a_wrong_option_is_refused(
    options: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(options)
    assert reason in capsys.readouterr().err


def test_without_a_way_to_sign_in_it_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "megaphone_operator", "--resolver", "10.0.0.10"]
    command += ["--address", "127.0.0.1:0"]
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert done.returncode == 1
    [line] = map(json.loads, done.stderr.splitlines())
    assert line["level"] == "error"
    assert line["message"].startswith("no kubeconfig and no service account to sign in with")
