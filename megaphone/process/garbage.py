"""Keeps the garbage collector from holding the event loop.

A full collection looks at every object. That takes 50 ms for 300,000 objects, which is a node with
10,000 channels and a few events in each. But nearly every object here is freed by its reference
count, and cycles die young. So objects that have survived one collection are *frozen*: their
reference counts still free them, but collections skip them, until so many are frozen that some of
them could be cycles.

A turn of the event loop makes many objects, and most are freed before it ends. So the youngest
generation has room for those of a turn, or else collections would begin that free nothing.
"""

import gc
from typing import Any, Self

OLDEST = 2
"""The generation whose collection looks at every object that is not frozen."""
THRESHOLDS = (5_000, 0, 0)
"""For `gc.set_threshold`: a collection begins when there are 5,000 more new objects, every second
one looks at those that one has left too, and every third at all that are not frozen. So it has to
look at 15,000 objects at most, which takes 2 ms; but the first two after a full collection may look
at a quarter of what that one has left, and at a quarter of that."""
BYTES_AN_OBJECT = 2_000
"""Divides the memory that the process may use. As many objects may stay frozen without another
look. Even if all of them were unused cycles, they would take only a tenth of that memory."""


class Freezer:
    """A context in which objects that survive a collection are frozen. A process has one."""

    def __init__(self, allowed_bytes: int) -> None:
        """The process may use `allowed_bytes` of memory."""
        self._few = allowed_bytes // BYTES_AN_OBJECT
        self._after_full_collection = 0
        self._frozen_since = 0
        """How many objects were frozen after the last count; some of them have been freed."""
        self._collects_all = False
        self._thresholds = gc.get_threshold()

    def __enter__(self) -> Self:
        """Freeze every object that exists, which is mostly modules."""
        gc.collect()
        gc.freeze()
        # The interpreter looks at the oldest generation only when it may have grown by a quarter
        # since the last time, when it had all that is frozen now.
        gc.collect()
        self._after_full_collection = gc.get_freeze_count()
        gc.callbacks.append(self._on_collection)
        gc.set_threshold(*THRESHOLDS)
        return self

    def __exit__(self, *_: object) -> None:
        gc.set_threshold(*self._thresholds)
        gc.callbacks.remove(self._on_collection)
        gc.unfreeze()

    def _on_collection(self, phase: str, info: dict[str, Any]) -> None:
        if info["generation"] != OLDEST:
            return
        if phase == "start":
            self._collects_all = self._are_too_many()
            if self._collects_all:
                gc.unfreeze()
        else:
            survivors = len(gc.get_objects(generation=OLDEST))
            if self._collects_all:
                self._after_full_collection, self._frozen_since = survivors, 0
            else:
                self._frozen_since += survivors
            gc.freeze()

    def _are_too_many(self) -> bool:
        """Return whether twice as many objects are frozen as after the last full collection."""
        if self._frozen_since < max(self._few, self._after_full_collection):
            return False
        self._frozen_since = 0  # because counting them is slow too
        return gc.get_freeze_count() >= max(self._few, 2 * self._after_full_collection)
