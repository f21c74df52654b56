"""A plugin of pytest that measures which branches the tests of some folders reach.

It measures while one of these tests runs, and while the broker is imported. So all tests can run
together, and the others are not slowed down. `tests.coverage_floor` reads what it leaves.
"""

from collections.abc import Generator
from importlib import import_module
from pathlib import Path

import coverage
import pytest

COVERED = ("core", "store", "wire", "contract")
"""The folders whose tests must reach the branches of their packages. Tests through the faces do not
count: a branch that only they reach can break without a test that says where."""
HERE = Path(__file__).parent


measured = coverage.Coverage(data_suffix=True)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_load_initial_conftests() -> Generator[None, object, object]:
    """Measure the imports. `tests/conftest.py` has those of the broker, except the store in Redis,
    which a node imports when it uses it."""
    measured.start()
    try:
        loaded = yield
        import_module("megaphone.store.redis.store")
        return loaded
    finally:
        measured.stop()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    if not counts(item):
        return (yield)
    measured.start()
    try:
        return (yield)
    finally:
        measured.stop()


def pytest_sessionfinish() -> None:
    measured.save()


@pytest.hookimpl(optionalhook=True)
def pytest_runner_finish() -> None:
    measured.save()


def counts(item: pytest.Item) -> bool:
    """Return whether the branches count that a test reaches. Those of a test with examples of
    hypothesis do not, because other examples may reach others."""
    folder = item.path.relative_to(HERE).parts[0]
    return folder in COVERED and item.get_closest_marker("hypothesis") is None
