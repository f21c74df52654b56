"""Metrics have the names that dashboards know, are well-formed, and count both faces alike."""

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from megaphone.app import App
from megaphone.model import AgentMode, ReadOptions
from megaphone.observe.catalogue import METRICS, Metric
from megaphone.observe.metrics import Metrics
from megaphone.observe.rendering import family
from tests.support.faces import GrpcFace, HttpFace

CONTRACT = {
    "megaphone_channel_created": "counter",
    "megaphone_channel_disposed": "counter",
    "megaphone_messages_received": "counter",
    "megaphone_messages_read": "counter",
    "megaphone_messages_unroutable": "counter",
    "megaphone_messages_lost": "counter",
    "megaphone_channel_duration": "histogram",
}
BUCKETS = [80, 160, 320, 640, 1280, 2560, 5120, 10240, 20480]


def families(metrics: Metrics) -> dict[str, str]:
    text = metrics.render().decode()
    return {family.name: family.type for family in text_string_to_metric_families(text)}


def raw_families(text: bytes) -> dict[str, str]:
    """Return the type of each metric by its name, which the parser of prometheus-client changes."""
    lines = (line.split(" ") for line in text.decode().splitlines())
    return {line[2]: line[3] for line in lines if line[:2] == ["#", "TYPE"]}


def value(metrics: Metrics, name: str) -> float:
    for line in metrics.render().decode().splitlines():
        if line.startswith(f"{name} "):
            return float(line.split()[1])
    raise AssertionError(f"no {name}")


def test_the_names_and_types_are_those_of_the_contract() -> None:
    assert CONTRACT.items() <= families(Metrics()).items()


def test_a_shared_store_is_described_by_labels() -> None:
    metrics = Metrics()
    assert "megaphone_store_info" not in families(metrics)
    labels = {"server": 'a "server" \\ of two\nlines', "persistence": "AOF", "wait_replicas": 1}
    metrics.add("store_info", lambda: [(labels, 1)])
    [sample] = [
        one
        for family in text_string_to_metric_families(metrics.render().decode())
        for one in family.samples
        if family.name == "megaphone_store_info"
    ]
    assert sample.value == 1
    assert sample.labels == {name: str(value) for name, value in labels.items()}


def test_the_process_is_described_too() -> None:
    assert "process_resident_memory_bytes" in families(Metrics())


@pytest.mark.parametrize(("age_s", "bucket"), [(0, 80), (80, 80), (80.1, 160), (99_999, None)])
def test_the_life_of_a_channel_falls_into_its_bucket(age_s: float, bucket: int | None) -> None:
    metrics = Metrics()
    metrics.channel_removed(age_s, 0)
    text = metrics.render().decode()
    for bound in BUCKETS:
        inside = int(bucket is not None and bound >= bucket)
        assert f'megaphone_channel_duration_bucket{{le="{bound}"}} {inside}\n' in text
    assert 'megaphone_channel_duration_bucket{le="+Inf"} 1\n' in text
    assert value(metrics, "megaphone_channel_duration_sum") == age_s


async def test_agents_are_counted_by_mode(app: App) -> None:
    app.agents.add("another", AgentMode.REPLICA, 0.0)
    text = app.metrics.render().decode()
    counted = dict(re.findall(r'^megaphone_agents\{mode="(\w+)"\} (\d+)$', text, re.MULTILINE))
    assert counted == {"MASTER": "1", "REPLICA": "1", "PIPED": "0"}


async def test_both_faces_are_counted_alike(app: App, http: HttpFace, grpc: GrpcFace) -> None:
    for face in (http, grpc):
        channel = await face.create()
        await face.write(channel.producer, "s", b"1")
        async with face.read(channel.consumer, ReadOptions(limit=1)) as read:
            assert [event.body async for event in read] == [b"1"]
    assert value(app.metrics, "megaphone_channel_created") == 2
    assert value(app.metrics, "megaphone_messages_received") == 2
    assert value(app.metrics, "megaphone_messages_read") == 2
    assert value(app.metrics, "megaphone_reads_open") == 0


def test_whole_numbers_stay_whole_beside_fractions() -> None:
    samples = [({"of": "whole"}, 10), ({"of": "half"}, 0.5)]
    lines = list(family(Metric("counter", "things", "things", "Things."), samples))
    assert lines[-2:] == ['megaphone_things{of="whole"} 10', 'megaphone_things{of="half"} 0.5']


async def test_a_node_renders_what_the_catalogue_has(app: App) -> None:
    rendered = {
        name.removeprefix("megaphone_"): kind
        for name, kind in raw_families(app.metrics.render()).items()
        if name.startswith("megaphone_")
    }
    everywhere = {name: one.kind for name, one in METRICS.items() if not one.only}
    assert everywhere.items() <= rendered.items()
    assert {name: METRICS[name].kind for name in rendered} == rendered
