"""Keeps Python's search for reference cycles from holding the event loop.

A full search looks at every object: 50 ms for 300,000, which is a node with 10,000 channels and a
few events in each. But nearly everything here is freed without it, as soon as nothing refers to it,
and cycles die young. So what has survived one search is set aside (*frozen*): it is freed like
everything else, but is looked at no more, until there is so much of it that some could be cycles.
"""

import gc
from typing import Any, Self

OLDEST = 2
"""The generation of objects of which a search looks at all that is not frozen."""
SEARCH_EVERY = 1
"""After how many searches of the younger generations another one includes the oldest: then it
looks at some 15,000 objects, which takes 2 ms."""
BYTES_AN_OBJECT = 2_000
"""For so many bytes of memory that the process may use, one frozen object is worth no look at it.
If all of them were cycles that nobody needs, they would take a tenth of the memory."""


class Freezer:
    """A context in which what survives a search is frozen. There is one in a process."""

    def __init__(self, allowed_bytes: int) -> None:
        """The process may use `allowed_bytes` of memory."""
        self._few = allowed_bytes // BYTES_AN_OBJECT
        self._after_full_search = 0
        self._frozen_since = 0
        """How many were frozen since they were counted last; some of them have been freed."""
        self._searches_all = False
        self._thresholds = gc.get_threshold()

    def __enter__(self) -> Self:
        """Freeze what there is: the modules above all."""
        gc.collect()
        gc.freeze()
        self._after_full_search = gc.get_freeze_count()
        gc.callbacks.append(self._on_search)
        youngest, younger, _ = self._thresholds
        gc.set_threshold(youngest, younger, SEARCH_EVERY)
        return self

    def __exit__(self, *_: object) -> None:
        gc.set_threshold(*self._thresholds)
        gc.callbacks.remove(self._on_search)
        gc.unfreeze()

    def _on_search(self, phase: str, info: dict[str, Any]) -> None:
        if info["generation"] != OLDEST:
            return
        if phase == "start":
            self._searches_all = self._is_too_much()
            if self._searches_all:
                gc.unfreeze()
        else:
            survivors = len(gc.get_objects(generation=OLDEST))
            if self._searches_all:
                self._after_full_search, self._frozen_since = survivors, 0
            else:
                self._frozen_since += survivors
            gc.freeze()

    def _is_too_much(self) -> bool:
        """Whether twice as much is frozen as after the last full search."""
        if self._frozen_since < max(self._few, self._after_full_search):
            return False
        self._frozen_since = 0  # to count them takes a while too
        return gc.get_freeze_count() >= max(self._few, 2 * self._after_full_search)
