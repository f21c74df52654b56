"""Commands call a broker with TLS, by the files of a context or of the environment."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import User
from tests.support.certificates import Certificates
from tests.support.process import BrokerProcess, broker_process
from tests.support.settings import certificates


@pytest.fixture(scope="module")
def made() -> Certificates:
    return certificates()


@pytest.fixture(scope="module")
def broker(home_of_broker: Path, made: Certificates) -> Iterator[BrokerProcess]:
    tls: dict[str, Any] = {
        "tls.certificate": made.certificate,
        "tls.key": made.key,
        "tls.client_ca": made.authority,
    }
    with broker_process(home_of_broker, **tls) as process:
        yield process


def test_a_context_keeps_the_files(
    broker: BrokerProcess, made: Certificates, tmp_path: Path
) -> None:
    user = User(tmp_path)
    files = ["--ca", str(made.authority), "--certificate", str(made.certificate)]
    url = f"https://127.0.0.1:{broker.http_port}"
    added = user.run("context", "add", "shop", url, *files, "--key", str(made.key))
    assert added.returncode == 0, added.stderr
    shown = user.run("context", "show", "shop").stdout
    assert f"ca       {made.authority}\n" in shown
    created = user.run("create", "--context", "shop")
    assert created.returncode == 0, created.stderr


def test_the_environment_names_the_files(
    broker: BrokerProcess, made: Certificates, tmp_path: Path
) -> None:
    user = User(tmp_path)
    files = {
        "MEGAPHONE_CA": str(made.authority),
        "MEGAPHONE_CERTIFICATE": str(made.certificate),
        "MEGAPHONE_KEY": str(made.key),
    }
    created = user.run("create", "--url", f"grpcs://{broker.grpc_target}", **files)
    assert created.returncode == 0, created.stderr
    missing = user.run(
        "create", "--url", "https://127.0.0.1:1", MEGAPHONE_CA=str(tmp_path / "none.pem")
    )
    assert (missing.returncode, "none.pem" in missing.stderr) == (2, True)


def test_a_key_without_a_certificate_is_refused(tmp_path: Path) -> None:
    added = User(tmp_path).run("context", "add", "shop", "https://localhost", "--key", "k.pem")
    assert added.returncode == 2
    assert "--certificate, which is missing" in added.stderr
