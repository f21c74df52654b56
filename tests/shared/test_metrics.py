"""The metrics of two nodes that share a store, added up, over both faces."""

import asyncio
from dataclasses import replace

import pytest

from megaphone.app import running
from megaphone.errors import MegaphoneError
from megaphone.observe.catalogue import METRICS, WITH_STORE
from megaphone.settings import Settings
from tests.parity.test_metrics import *  # noqa: F403
from tests.parity.test_metrics import LONG, ends, reads_are_open
from tests.shared.conftest import Nodes
from tests.support.faces import FACES, Face, read_all
from tests.support.metered import WITHIN_S, Metered, numbers
from tests.support.redis_server import redis_server
from tests.support.scenes import eventually

UNLESS_NONE = ("jwks_fetched_timestamp_seconds",)
"""Metrics that are there without a value if a node has nothing of the kind."""

del test_a_call_that_nobody_knows_counts_too, test_each_call_counts_once_without_the_lane  # noqa: F821 - they are for one node


async def test_calls_to_the_store_count(app: Nodes, face: Face) -> None:
    metered = Metered(app)
    channel = await face.create()
    await face.write(channel.producer, "s", b"1")
    assert metered.moved_by("store_call_seconds_count") >= 2
    assert 0 < metered.moved_by("store_call_seconds_sum") < WITHIN_S
    assert metered.moved("store_errors_total") == {}


async def test_a_node_renders_what_the_catalogue_has_for_its_store(app: Nodes) -> None:
    text = app.apps[0].metrics.render().decode()
    for name, metric in METRICS.items():
        is_here = f"\n# TYPE megaphone_{name} {metric.kind}\n" in f"\n{text}"
        assert is_here == (metric.only in ("", WITH_STORE) or name in UNLESS_NONE), name


async def test_the_channels_of_the_store_count_once(app: Nodes, face: Face) -> None:
    for _ in range(3):
        await face.create()

    async def are_counted() -> bool:  # each node counts once a second
        return numbers(app)["store_channels"] == 3

    await eventually(are_counted, within_s=WITHIN_S)


@pytest.mark.settings(write_timeout_millis=500)
@pytest.mark.parametrize("name", FACES)
async def test_a_store_that_goes_away_is_seen(settings: Settings, name: str) -> None:
    """Calls fail, reads end because the store may have lost events, and connections come back."""
    with redis_server() as server:
        async with (
            running(replace(settings, store=server.text_url)) as app,
            FACES[name](app) as face,
        ):
            channel = await face.create()
            metered = Metered(app)
            reading = asyncio.create_task(read_all(face, channel.consumer, LONG))
            await reads_are_open(app, 1)
            server.stop()
            with pytest.raises(MegaphoneError) as raised:
                await face.write(channel.producer, "s", b"1")
            assert raised.value.code == "STORE_UNAVAILABLE"
            failed = metered.moved("store_errors_total")
            assert failed
            assert failed.keys() <= {'{kind="broken"}', '{kind="unreachable"}'}
            assert metered.calls()[name, "write", "STORE_UNAVAILABLE"] == 1
            server.start()

            async def is_back() -> bool:  # the link, and the connection for messages
                return metered.moved_by("store_reconnects_total") >= 2

            await eventually(is_back, within_s=WITHIN_S)
            await asyncio.gather(reading, return_exceptions=True)
            await metered.becomes("reads_ended_total", ends(store_lost=1))
