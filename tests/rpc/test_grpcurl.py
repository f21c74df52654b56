"""grpcurl finds and calls the services: by reflection, and by the schema as a checkout has it."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.process import BrokerProcess, broker_process
from tests.support.settings import IS_LONG

ROOT = Path(__file__).parents[2]
BUILT = ROOT / ".venv" / "go"
"""Where the tool is kept once it is built, which takes minutes."""
SOURCE = "github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.4"
SERVICE = "megaphone.v1.ChannelService"
ROUTE = 'post: "/write/{producer_address}/{stream_id}"'

pytestmark = [
    pytest.mark.group("grpcurl"),
    pytest.mark.skipif(not IS_LONG, reason="builds a tool"),
    pytest.mark.timeout(1_800),
]

Grpcurl = Callable[..., str]


@pytest.fixture(scope="module")
def grpcurl() -> Grpcurl:
    """Call the tool, and return what it printed."""
    folders = f"{BUILT}{os.pathsep}{os.environ['PATH']}"
    if shutil.which("grpcurl", path=folders) is None:
        go = shutil.which("go")
        if go is None:
            pytest.skip("needs grpcurl, or Go to build it")
        subprocess.run([go, "install", SOURCE], env=os.environ | {"GOBIN": str(BUILT)}, check=True)
    tool = shutil.which("grpcurl", path=folders)
    assert tool is not None

    def call(*arguments: str) -> str:
        return subprocess.check_output(
            [tool, "-plaintext", "-max-time", "10", *arguments], cwd=ROOT, text=True
        )

    return call


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    with broker_process(tmp_path_factory.mktemp("broker")) as broker:
        yield broker


def test_it_lists_what_a_broker_serves(broker: BrokerProcess, grpcurl: Grpcurl) -> None:
    assert SERVICE in grpcurl(broker.grpc_target, "list").splitlines()
    assert f"{SERVICE}.Write" in grpcurl(broker.grpc_target, "list", SERVICE).splitlines()


def test_it_describes_a_method(broker: BrokerProcess, grpcurl: Grpcurl) -> None:
    assert ROUTE in grpcurl(broker.grpc_target, "describe", f"{SERVICE}.Write")


def test_it_calls_a_method(broker: BrokerProcess, grpcurl: Grpcurl) -> None:
    created = json.loads(grpcurl(broker.grpc_target, f"{SERVICE}/CreateChannel"))
    assert created["protocols"] == ["HTTP_STREAM_NDJSON_V1"]


def test_the_schema_of_a_checkout_needs_no_other_files(grpcurl: Grpcurl) -> None:
    schema = ("-import-path", "proto", "-proto", "megaphone/v1/channels.proto")
    described = grpcurl(*schema, "describe", f"{SERVICE}.Write")
    assert ROUTE in described
    assert "// Write one event." in described
