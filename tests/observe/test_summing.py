"""The metrics of several processes are added up as Prometheus needs them."""

from megaphone.observe.metrics import Metrics
from megaphone.observe.summing import lasting, parsed, summed

TEXT = b"""\
# HELP megaphone_channel_created Channels created.
# TYPE megaphone_channel_created counter
megaphone_channel_created 3
# HELP megaphone_channels Channels on this node.
# TYPE megaphone_channels gauge
megaphone_channels -2
# HELP megaphone_reads_open Reads open.
# TYPE megaphone_reads_open gauge
megaphone_reads_open 5
# HELP megaphone_channel_duration Lifetime of channels in seconds.
# TYPE megaphone_channel_duration histogram
megaphone_channel_duration_bucket{le="80"} 1
megaphone_channel_duration_bucket{le="+Inf"} 2
megaphone_channel_duration_sum 100.5
megaphone_channel_duration_count 2
# HELP process_start_time_seconds Start time of the process since unix epoch in seconds.
# TYPE process_start_time_seconds gauge
process_start_time_seconds 1.7e+09
# HELP python_info Python platform information
# TYPE python_info gauge
python_info{implementation="CPython",major="3"} 1.0
"""


def values(text: bytes) -> dict[str, float]:
    return {
        name: value for family in parsed(text).values() for name, value in family.samples.items()
    }


def test_one_text_stays_as_it_is() -> None:
    text = Metrics().render()
    assert values(summed([text])) == values(text)
    assert summed([summed([text])]) == summed([text])
    comments = [line for line in text.splitlines() if line.startswith(b"#")]
    assert [line for line in summed([text]).splitlines() if line.startswith(b"#")] == comments


def test_values_are_added_up() -> None:
    later = TEXT.replace(b"1.7e+09", b"1.8e+09")
    assert values(summed([later, TEXT, later])) == {
        "megaphone_channel_created": 9,
        "megaphone_channels": -6,
        "megaphone_reads_open": 15,
        'megaphone_channel_duration_bucket{le="80"}': 3,
        'megaphone_channel_duration_bucket{le="+Inf"}': 6,
        "megaphone_channel_duration_sum": 301.5,
        "megaphone_channel_duration_count": 6,
        "process_start_time_seconds": 1.7e9,
        'python_info{implementation="CPython",major="3"}': 1,
    }


def test_of_times_the_earliest_is_kept() -> None:
    keys = b'megaphone_jwks_fetched_timestamp_seconds{issuer="main"} %d\n'
    head = b"# TYPE megaphone_jwks_fetched_timestamp_seconds gauge\n"
    found = values(summed([head + keys % 1_700_000_000, head + keys % 0, head + keys % 9]))
    assert list(found.values()) == [0]


def test_a_sample_that_only_one_has_stays() -> None:
    more = TEXT + b'python_info{implementation="PyPy",major="3"} 1.0\n'
    assert values(summed([TEXT, more]))['python_info{implementation="PyPy",major="3"}'] == 1


def test_no_text_gives_no_metrics() -> None:
    assert values(summed([])) == values(summed([b"", b""])) == {}


def test_counts_last_when_a_process_has_ended() -> None:
    kept = values(lasting(TEXT))
    assert kept.pop("megaphone_channel_created") == 3
    assert kept.pop("megaphone_channels") == -2
    assert all(name.startswith("megaphone_channel_duration") for name in kept)


def test_what_all_processes_share_is_not_added_up() -> None:
    text = b"""\
# TYPE megaphone_channels_limit gauge
megaphone_channels_limit 100
# TYPE megaphone_store_channels gauge
megaphone_store_channels %d
# TYPE megaphone_build_info gauge
megaphone_build_info{version="1"} 1
"""
    assert values(summed([text % 7, text % 8])) == {
        "megaphone_channels_limit": 100,
        "megaphone_store_channels": 8,
        'megaphone_build_info{version="1"}': 1,
    }
