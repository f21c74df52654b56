"""What the metrics of a node, or of several nodes together, say of what a test does."""

from collections.abc import Mapping
from typing import Any

from megaphone.observe.summing import parsed, summed
from tests.support import leaks
from tests.support.scenes import eventually

WITHIN_S = 20.0


def numbers(app: Any) -> dict[str, float]:
    """Return the value of each sample of an `App`, or the sums over the nodes of the shared store,
    by its name without `megaphone_` and with its labels. Those without a label have only a name."""
    text = summed([one.metrics.render() for one in getattr(app, "apps", [app])])
    leaks.check(text.decode(), "the metrics")
    return {
        name.removeprefix("megaphone_"): value
        for family, its in parsed(text).items()
        if family.startswith("megaphone_")
        for name, value in its.samples.items()
    }


class Metered:
    """Compares the metrics with those of its beginning."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self.before = numbers(app)

    def moved(self, family: str) -> dict[str, float]:
        """Return by how much the samples of a metric have changed that have, by their labels."""
        now = numbers(self._app)
        return {
            name.removeprefix(family): now[name] - self.before.get(name, 0)
            for name in now
            if name.partition("{")[0] == family and now[name] != self.before.get(name, 0)
        }

    def moved_by(self, name: str) -> float:
        """Return by how much one sample has changed."""
        return numbers(self._app).get(name, 0) - self.before.get(name, 0)

    def calls(self) -> dict[tuple[str, str, str], int]:
        """Return how many calls there were since the beginning, by face, method and code."""
        found: dict[tuple[str, str, str], int] = {}
        for labels, count in self.moved("requests_total").items():
            face, method, code = (part.split('"')[1] for part in labels.split(","))
            found[face, method, code] = int(count)
        return found

    async def becomes(self, family: str, expected: Mapping[str, float]) -> None:
        """Wait until the samples of a metric have changed just so."""

        async def has() -> bool:
            return self.moved(family) == expected

        try:
            await eventually(has, within_s=WITHIN_S)
        except TimeoutError:
            raise AssertionError(f"{self.moved(family)} is not {expected}") from None
