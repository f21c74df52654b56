"""Lets new settings take effect while the node serves, all of them or none.

Each part of the node that can do so is a `Reloadable`. First every part prepares for the new
settings, in a thread, because it may read files. When all of them have succeeded, all apply what
they have prepared, in one step of the event loop. When one fails, nothing has changed.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Protocol

from megaphone.settings import Settings

log = logging.getLogger(__name__)


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
    """Reads the settings again and lets those take effect that belong to its parts."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        """The settings that are in effect."""
        self.succeeded = 0
        """How often new settings took effect."""
        self.failed = 0
        """How often everything stayed as it was, because a setting or a file was wrong."""
        self._parts: list[Reloadable] = []
        self._names: set[str] = set()
        self.one_at_a_time = asyncio.Lock()
        """Held while something is read again."""

    def add(self, part: Reloadable, *names: str) -> None:
        """Let new values of some settings take effect in a part of the node."""
        self._parts.append(part)
        self._names.update(names)

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
                log.error("the settings stay as they were: %s", error)
                return False
            except Exception:
                self.failed += 1
                log.exception("the settings stay as they were")
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
        present = self.settings
        changed = [
            setting.name
            for setting in fields(Settings)
            if getattr(loaded, setting.name) != getattr(present, setting.name)
        ]
        fixed = [name for name in changed if name not in self._names]
        taken = {name: getattr(loaded, name) for name in changed if name in self._names}
        self.settings = replace(present, **taken)
        log.info("the settings were read again; changed: %s", ", ".join(taken) or "none")
        if fixed:
            log.warning("these settings change only at the next start: %s", ", ".join(fixed))
