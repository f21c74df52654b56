"""Finds secrets where none may be: in log records, in the log of a broker's process, in its command
line, in texts of errors and in metrics.

The addresses of channels, tokens and JWTs are found by their forms, which nothing else has. The
secrets of settings have no form, so the helpers that start brokers say them here.
"""

import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from megaphone.observe.logs import fields_of

FORMS = re.compile(
    r"[A-Za-z0-9_-]\.[A-Za-z0-9]{50}\.[0-9a-f]"  # a consumer address
    r"|[A-Za-z0-9_-]\.[A-Za-z0-9_-]{58}[AEIMQUYcgkosw048](?![A-Za-z0-9_-])"  # a producer address
    r"|mgp_[A-Za-z0-9_-]{16}"  # a token
    r"|eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\."  # a JWT
    r"|-----BEGIN [A-Z ]*PRIVATE KEY"
)
SECRET_SETTINGS = ("secret", "previous_secret", "endpoint", "password", "key")
"""The names of settings whose values are secret, in whatever table they are."""
SHORTEST = 12
"""Shorter secrets of tests are not looked for, because other texts may contain them."""
KEPT = 500

_known: dict[str, None] = {}


def keep_secrets(settings: Mapping[str, Any]) -> None:
    """Look for the secrets of these settings from now on. The oldest are forgotten."""
    for secret in secrets_of(settings):
        _known[secret] = None
    while len(_known) > KEPT:
        del _known[next(iter(_known))]


def secrets_of(value: Any, name: str = "") -> Iterable[str]:
    if isinstance(value, Mapping):
        for key, member in value.items():
            yield from secrets_of(member, str(key).rpartition(".")[2])
    elif hasattr(value, "__dataclass_fields__"):
        for member in value.__dataclass_fields__:
            yield from secrets_of(getattr(value, member), member)
    elif isinstance(value, str) and name in SECRET_SETTINGS and len(value) >= SHORTEST:
        yield from () if value.startswith("/") else (value,)  # the path of a key is no secret


def leak_in(text: str) -> str | None:
    """Return the secret in a text, with what is around it; None if there is none."""
    found = FORMS.search(text)
    if found is not None:
        return text[max(0, found.start() - 80) : found.end() + 20]
    return next((text[:200] for secret in _known if secret in text), None)


def check(text: str, where: str) -> None:
    leak = leak_in(text)
    assert leak is None, f"a secret in {where}: {leak}"


def check_command_lines(pid: int) -> None:
    """Look at what every user of the machine sees of a process and of its children."""
    of_process = Path(f"/proc/{pid}")
    if not of_process.exists():  # not Linux
        return
    children = (of_process / "task" / str(pid) / "children").read_text().split()
    for one in (str(pid), *children):
        check(Path("/proc", one, "cmdline").read_text().replace("\0", " "), "a command line")


CLIENTS_OF_TESTS = "urllib3"
"""The loggers of a client that only tests use, and that logs the paths which it asks for."""


class LeakFinder(logging.Handler):
    """Looks at every log record, at every level. Tests may log what they like."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.leaks: list[str] = []
        self._formatter = logging.Formatter("%(name)s: %(message)s")

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith(CLIENTS_OF_TESTS):
            return
        text = self._formatter.format(record)
        fields = "".join(f"\n{name}={value}" for name, value in fields_of(record).items())
        if (leak := leak_in(text + fields)) is not None:
            self.leaks.append(leak)

    def take(self) -> list[str]:
        leaks, self.leaks = self.leaks, []
        return leaks


LOGGED = LeakFinder()


def watch_logs() -> None:
    """Let all loggers make their records of every level, for `LOGGED`."""
    root = logging.getLogger()
    root.addHandler(LOGGED)
    root.setLevel(logging.DEBUG)
