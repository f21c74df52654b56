"""Lets new settings take effect while the node serves, all of them or none.

Each part of the node whose settings can change is a `Reloadable`. First every part prepares for the
new settings, in a thread, because it may read files. If all parts succeed, all of them apply what
they have prepared, in one step of the event loop. If one part fails, nothing changes.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any, Protocol

from megaphone.settings import Settings

log = logging.getLogger(__name__)
audit = logging.getLogger("megaphone.audit")


class Reloadable(Protocol):
    """A part of the node for which new settings can take effect while it serves."""

    def prepare(self, settings: Settings) -> Callable[[], None]:
        """Prepare for new settings, and change nothing. This runs in a thread and may read files.

        Returns: a function that lets the settings take effect. It runs on the event loop, does not
            wait and must not fail.
        Raises: ValueError or OSError, if a setting or a file is wrong. Its text is for the process
            log, so it must not contain a secret.
        """


class Reloader:
    """Reads the settings again, and applies the new values that its parts can apply."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        """The settings that are in effect."""
        self.succeeded = 0
        """How often new settings took effect."""
        self.failed = 0
        """How often everything stayed as it was, because a setting or a file was wrong."""
        self._parts: list[Reloadable] = []
        self.names: set[str] = set()
        """The settings whose new values can take effect, or the tables that contain them."""
        self.one_at_a_time = asyncio.Lock()
        """Held while settings or files are being read again."""

    def add(self, part: Reloadable, *names: str) -> None:
        """Let new values of some settings take effect in a part of the node. A name may be that of
        a table, or of a member of a table, such as `tls.key`."""
        self._parts.append(part)
        self.names.update(names)

    async def reload(self, load: Callable[[Settings], Settings]) -> bool:
        """Let the settings take effect that `load` returns, and log what has happened.

        `load` gets the settings that are in effect, and runs in a thread. If it raises ValueError
        or OSError, or if a part does, everything stays as it was.

        Returns: whether the settings have taken effect.
        """
        async with self.one_at_a_time:
            try:
                loaded, prepared = await asyncio.to_thread(self._prepare, load)
            except (ValueError, OSError) as error:
                self.failed += 1
                audit.error("the settings stay as they were: %s", error)
                return False
            except Exception:
                self.failed += 1
                audit.exception("the settings stay as they were")
                return False
            for apply in prepared:
                apply()
            self._take(loaded)
            self.succeeded += 1
            return True

    def _prepare(
        self, load: Callable[[Settings], Settings]
    ) -> tuple[Settings, list[Callable[[], None]]]:
        loaded = load(self.settings)
        return loaded, [part.prepare(loaded) for part in self._parts]

    def _take(self, loaded: Settings) -> None:
        present = leaves(self.settings)
        changed = [path for path, value in leaves(loaded).items() if value != present[path]]
        taken = [path for path in changed if self._is_reloaded(path)]
        fixed = [path for path in changed if not self._is_reloaded(path)]
        for path in taken:
            self.settings = with_leaf(self.settings, path, loaded)
        audit.info("the settings were read again; changed: %s", ", ".join(taken) or "none")
        if fixed:
            log.warning("these settings change only at the next start: %s", ", ".join(fixed))

    def _is_reloaded(self, path: str) -> bool:
        return path in self.names or path.partition(".")[0] in self.names


def leaves(settings: Settings) -> dict[str, Any]:
    """Return the value of each setting by its name. Members of a table have dotted names, such as
    `tls.key`."""
    found: dict[str, Any] = {}
    for setting in fields(settings):
        value = getattr(settings, setting.name)
        if is_dataclass(value):
            for member in fields(value):
                found[f"{setting.name}.{member.name}"] = getattr(value, member.name)
        else:
            found[setting.name] = value
    return found


def with_leaf(settings: Settings, path: str, other: Settings) -> Settings:
    """Return settings that have one of their values from other settings."""
    name, _, member = path.partition(".")
    value = getattr(other, name)
    if member:
        value = replace(getattr(settings, name), **{member: getattr(value, member)})
    changed: dict[str, Any] = {name: value}
    return replace(settings, **changed)
