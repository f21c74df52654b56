"""A plugin of pytest that runs tests in several processes, the runners, with `-n 4`.

The process that was started collects the tests, and then forks the runners. So modules are imported
and tests are collected once, which takes ten seconds of processor time. A runner runs one *share*
of the tests after the other:

- A share has tests of one module, which use the fixtures of that module together.
- Tests with `@pytest.mark.group("name")` are one share, whatever their modules are. These shares
  run first, because they take the longest.
- The fewer tests are left, the smaller are the shares, and the last ones are of modules with many
  short tests. So all runners end at about the same time.

If a runner dies, the test that it ran fails, and another runner takes its place.
"""

import atexit
import gc
import os
import signal
import sys
import traceback
import warnings
import weakref
from collections import deque
from collections.abc import Iterable
from itertools import groupby
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any, NoReturn

import pytest

LARGEST_SHARE = 40
"""How many tests a share of a module has at most."""
SHARES_LEFT = 4
"""A share has at most a part of the tests that are left: as many as leave this number of shares to
each runner."""

MANY_TESTS = 40
"""Modules with as many tests are the last to be run, because each of their tests is short."""

Share = list[int]
"""Tests, as indexes of the tests of the session."""


class Hooks:
    def pytest_runner_finish(self) -> None:
        """Called in a runner that has run its last test."""


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    pluginmanager.add_hookspecs(Hooks)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("runners")
    # pytest keeps short options in lower case for itself.
    group._addoption(
        "-n", dest="runners", type=int, default=0, help="how many processes run the tests"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "group(name): tests that run one after the other")


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    options = session.config.option
    if not options.runners or options.collectonly or session.testsfailed or not session.items:
        return None
    Pool(session, options.runners).run()
    return True


class Queue:
    """The tests that no runner has begun."""

    def __init__(self, items: list[pytest.Item], runners: int) -> None:
        self._runners = runners
        groups: dict[str, Share] = {}
        alone: Share = []
        for index, item in enumerate(items):
            mark = item.get_closest_marker("group")
            (alone if mark is None else groups.setdefault(mark.args[0], [])).append(index)
        self._groups = deque(sorted(groups.values(), key=len, reverse=True))
        modules = (deque(tests) for _, tests in groupby(alone, lambda index: items[index].path))
        self._modules = deque(sorted(modules, key=lambda tests: len(tests) >= MANY_TESTS))
        self._left = len(alone)

    def next(self) -> Share:
        """Return the next share, which is empty if no test is left."""
        if self._groups:
            return self._groups.popleft()
        if not self._modules:
            return []
        module = self._modules[0]
        size = min(len(module), LARGEST_SHARE, 1 + self._left // (SHARES_LEFT * self._runners))
        share = [module.popleft() for _ in range(size)]
        self._left -= size
        if not module:
            self._modules.popleft()
        return share

    def put_back(self, share: Share) -> None:
        if share:
            self._groups.appendleft(share)


class Runner:
    """A runner, as the process sees it that has forked it."""

    def __init__(self, number: int, session: pytest.Session, others: Iterable["Runner"]) -> None:
        self.name = f"r{number}"
        self.connection, theirs = Pipe()
        self.left: deque[int] = deque()
        """The tests of its shares that it has not finished."""
        self.pid = os.fork()
        if self.pid == 0:
            for other in (self, *others):
                other.connection.close()
            work(session, self.name, theirs)
        theirs.close()

    def end(self) -> int:
        """Wait until the process is gone. Returns: its exit code."""
        self.connection.close()
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status)


class Pool:
    def __init__(self, session: pytest.Session, runners: int) -> None:
        self._session = session
        self._hook = session.config.hook
        self._queue = Queue(session.items, runners)
        self._runners: dict[Connection, Runner] = {}
        self._count = 0
        self._wanted = min(runners, len(session.items))

    def run(self) -> None:
        terminal = self._session.config.pluginmanager.getplugin("terminalreporter")
        if terminal is not None:
            terminal.showfspath = False  # tests of several modules run at the same time
        sys.stdout.flush()
        sys.stderr.flush()
        gc.freeze()  # a collection would make each runner copy what was collected
        try:
            for _ in range(self._wanted):
                self._fork()
            while self._runners:
                for connection in wait(list(self._runners)):
                    assert isinstance(connection, Connection)
                    self._receive(self._runners[connection])
        finally:
            for runner in self._runners.values():
                os.kill(runner.pid, signal.SIGINT)
                runner.end()

    def _fork(self) -> None:
        runner = Runner(self._count, self._session, self._runners.values())
        self._count += 1
        self._runners[runner.connection] = runner

    def _receive(self, runner: Runner) -> None:
        try:
            what, value = runner.connection.recv()
        except (EOFError, ConnectionResetError):
            self._has_ended(runner)
            return
        if what == "next":
            self._stop_if_wanted()
            share = self._queue.next()
            runner.left += share
            runner.connection.send(share)
        elif what == "report":
            self._log(
                self._hook.pytest_report_from_serializable(config=self._session.config, data=value)
            )
        elif what == "warning":
            self._hook.pytest_warning_recorded.call_historic(kwargs=value)
        else:
            assert what == "finished"
            runner.left.remove(value)

    def _log(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        self._hook.pytest_runtest_logreport(report=report)

    def _stop_if_wanted(self) -> None:
        if self._session.shouldfail:
            raise self._session.Failed(self._session.shouldfail)
        if self._session.shouldstop:
            raise self._session.Interrupted(self._session.shouldstop)

    def _has_ended(self, runner: Runner) -> None:
        del self._runners[runner.connection]
        code = runner.end()
        if code == 0:
            return
        if not runner.left:
            raise self._session.Failed(f"a runner ended with {code} after its tests")
        item = self._session.items[runner.left.popleft()]
        self._log(report_of_crash(item, f"the runner ended with {code} in this test"))
        self._queue.put_back(list(runner.left))
        self._fork()


def report_of_crash(item: pytest.Item, words: str) -> pytest.TestReport:
    return pytest.TestReport(item.nodeid, item.location, {}, "failed", words, "call")


# -- In a runner


class Reporter:
    """A plugin of a runner that passes on what its tests report."""

    def __init__(self, config: pytest.Config, connection: Connection) -> None:
        self._config = config
        self._connection = connection

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._connection.send(("report", data))

    def pytest_warning_recorded(
        self, warning_message: warnings.WarningMessage, when: str, nodeid: str, location: Any
    ) -> None:
        without_source = warnings.WarningMessage(
            str(warning_message.message),
            warning_message.category,
            warning_message.filename,
            warning_message.lineno,
        )
        value = {
            "warning_message": without_source,
            "when": when,
            "nodeid": nodeid,
            "location": location,
        }
        self._connection.send(("warning", value))


def work(session: pytest.Session, name: str, connection: Connection) -> NoReturn:
    code = 1
    try:
        leave_exit_to_the_parent()
        become_runner(session.config, name, connection)
        try:
            run_shares(session, connection)
            session.config.hook.pytest_runner_finish()
        finally:
            session._setupstate.teardown_exact(None)
            atexit._run_exitfuncs()
        code = 0
    except KeyboardInterrupt:
        pass
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def leave_exit_to_the_parent() -> None:
    """Forget what the parent does when it exits, such as the removal of its temporary files."""
    atexit._clear()
    weakref.finalize(
        leave_exit_to_the_parent, int
    )  # the first one decides that finalizers run last


def become_runner(config: pytest.Config, name: str, connection: Connection) -> None:
    """Give the runner what it must not share with other processes."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have had it ignored
    plugins = config.pluginmanager
    capture = plugins.getplugin("capturemanager")
    capture.stop_global_capturing()
    capture.start_global_capturing()
    plugins.unregister(name="terminalreporter")
    plugins.register(Reporter(config, connection))
    paths: Any = config._tmp_path_factory  # type: ignore[attr-defined]
    paths._basetemp = paths.getbasetemp() / name
    paths._basetemp.mkdir()


def run_shares(session: pytest.Session, connection: Connection) -> None:
    """Run shares until there is none. The next one is asked for before the last test of a share
    runs, because fixtures that both need are kept."""
    items = session.items
    share: deque[int] = deque()
    is_last = False
    while True:
        if len(share) <= 1 and not is_last:
            connection.send(("next", None))
            more = connection.recv()
            share += more
            is_last = not more
        if not share:
            return
        index = share.popleft()
        following = items[share[0]] if share else None
        hook = items[index].config.hook
        hook.pytest_runtest_protocol(item=items[index], nextitem=following)
        connection.send(("finished", index))
