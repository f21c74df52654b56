"""The functions of Redis and the model of a channel agree after any sequence of calls.

They differ in one rule: an event that a cursor skipped counts as sent once a later one was sent.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from megaphone.core.budget import Budget
from megaphone.store.redis.functions import source
from tests.core.test_channel_model import ChannelMachine, Model
from tests.store.redis.blocking import NODE, BlockingClient, RemoteChannel
from tests.support.build import pure_only
from tests.support.redis_fixtures import shared_server
from tests.support.settings import limits

SEQUENCES = {"redis": 1_000, "valkey8": 500, "valkey9": 500}
"""How many random sequences of calls each kind of server gets."""
STEPS = 25
"""How many calls a sequence has at most. Shorter sequences, but more of them, find more."""
TTL_S = 1e6
"""A channel does not expire here, because the machine goes on to use it."""
REQUEST_IDS_S = 60.25
"""The functions know of no other time than 60 s. See the note on it in the test of the core."""


class RemoteModel(Model):
    """The model with the one rule that differs."""

    def take(self, limit: int, now: float) -> tuple[list[int], int]:
        taken, again = super().take(limit, now)
        for record in self.kept:
            if taken and record.number < taken[-1] and record.sent_at is None:
                record.sent_at = now
        return taken, again


class RemoteMachine(ChannelMachine):
    server: BlockingClient

    def make(self, capacity: int, redelivery_s: float) -> None:
        bounds = limits(capacity=capacity, ttl_s=TTL_S, redelivery_window_s=redelivery_s)
        self.channel = RemoteChannel(self.server, bounds)  # type: ignore[assignment]
        self.budget = Budget()  # of a node, which has nothing of the channel
        self.model = RemoteModel(capacity, redelivery_s, TTL_S, REQUEST_IDS_S)

    # What concerns the memory of a node is no matter of a store outside of it.
    drop_replay = None  # type: ignore[assignment]
    what_it_holds_counts = None  # type: ignore[assignment]


@contextmanager
def client_of(kind: str) -> Iterator[BlockingClient]:
    with shared_server(kind) as server:
        server.call("FUNCTION", "LOAD", "REPLACE", source())
        client = BlockingClient(server.socket_path, NODE)
        yield client
        client.close()
        server.flush()


@pure_only("its waiters inherit from those of the core")
@pytest.mark.hypothesis
@pytest.mark.parametrize("kind", SEQUENCES)
def test_the_functions_agree_with_the_model(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with client_of(kind) as client:
        monkeypatch.setattr(RemoteMachine, "server", client, raising=False)
        run_state_machine_as_test(
            RemoteMachine,
            settings=settings(
                max_examples=SEQUENCES[kind],
                stateful_step_count=STEPS,
                report_multiple_bugs=False,
            ),
        )
