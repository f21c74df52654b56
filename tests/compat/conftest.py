"""Fixtures for tests against the original; where it has not been built, they are skipped."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.compat.brokers import Pair, pair
from tests.compat.original import missing


@pytest.fixture(scope="session", autouse=True)
def built() -> None:
    if reason := missing():
        pytest.skip(reason)


@pytest.fixture
def brokers(tmp_path: Path) -> Iterator[Pair]:
    with pair(tmp_path) as brokers:
        yield brokers
