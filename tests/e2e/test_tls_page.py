"""What docs/tls.md says is so: its commands, run one after the other, and its settings."""

import re
from pathlib import Path

import pytest

from tests.support.documented import ROOT, Step, assert_printed, run_session, steps
from tests.support.process import MEGAPHONE, BrokerProcess, broker_process

PAGE = (ROOT / "docs" / "tls.md").read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


def run(step: Step, folder: Path, broker: BrokerProcess | None = None) -> None:
    actual = {".venv/bin/megaphone": MEGAPHONE}
    if broker is not None:
        actual["localhost:3000"] = f"localhost:{broker.http_port}"
        actual["localhost:3001"] = f"localhost:{broker.grpc_port}"
    [printed] = run_session([step.command], actual, folder)
    assert_printed(step, printed)


def test_the_commands_and_settings_work(folder: Path) -> None:
    make, call, create, call_with_certificate = steps(PAGE)
    plain, for_known_clients = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    run(make, folder)
    (folder / "megaphone.toml").write_text(plain)
    with broker_process(folder) as broker:
        run(call, folder, broker)
        run(create, folder, broker)
    (folder / "megaphone.toml").write_text(for_known_clients)
    with broker_process(folder) as broker:
        run(call_with_certificate, folder, broker)
        with pytest.raises(AssertionError):
            run(call, folder, broker)
