"""The measurement of what tokens and limits cost measures what it says."""

from bench.shares import measured


async def test_who_writes_is_measured() -> None:
    costs = await measured(writes=100, rounds=1)
    assert list(costs) == ["no callers", "a token", "a token and limits"]
    assert all(cost > 0 for cost in costs.values())
