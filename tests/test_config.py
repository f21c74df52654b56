"""Settings come from defaults, one file and the environment, and wrong ones are named exactly."""

import json
from dataclasses import fields
from pathlib import Path

import pytest

from megaphone.config import KEYS, ConfigError, load
from megaphone.model import AgentMode
from megaphone.settings import Settings


def write(directory: Path, text: str, name: str = "megaphone.toml") -> Path:
    file = directory / name
    file.write_text(text)
    return file


def error_of(directory: Path, environment: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as raised:
        load(directory, environment or {})
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_nothing_has_to_be_set(tmp_path: Path) -> None:
    settings = load(tmp_path, {}).settings
    assert list(settings.agent.values()) == [AgentMode.MASTER]
    assert settings.agent_warmup_secs == 0
    assert settings.mng_socket_path is not None
    assert settings.address == "0.0.0.0:3000"


def test_a_named_agent_warms_up(tmp_path: Path) -> None:
    settings = load(tmp_path, {"megaphone_agent": "node1"}).settings
    assert settings.agent == {"node1": AgentMode.MASTER}
    assert settings.agent_warmup_secs == 60


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("megaphone.toml", 'buffer_capacity = 7\n[agent.virtual]\nA = "MASTER"\nb = "REPLICA"\n'),
        ("megaphone.yaml", "buffer_capacity: 7\nagent: {virtual: {A: MASTER, b: REPLICA}}\n"),
        ("megaphone.yml", "buffer_capacity: 7\nagent: {virtual: {A: MASTER, b: REPLICA}}\n"),
        (
            "megaphone.json",
            '{"buffer_capacity": 7, "agent": {"virtual": {"A": "MASTER", "b": "REPLICA"}}}',
        ),
    ],
)
def test_each_form_of_file_is_read(tmp_path: Path, name: str, text: str) -> None:
    write(tmp_path, text, name)
    config = load(tmp_path, {})
    assert config.settings.buffer_capacity == 7
    assert config.settings.agent == {"A": AgentMode.MASTER, "b": AgentMode.REPLICA}
    assert config.sources["buffer_capacity"] == name
    assert config.sources["address"] == "default"


def test_the_environment_overrides_the_file(tmp_path: Path) -> None:
    write(tmp_path, "buffer_capacity = 7\nmax_channels = 9\n")
    config = load(tmp_path, {"megaphone_buffer_capacity": "8"})
    assert (config.settings.buffer_capacity, config.settings.max_channels) == (8, 9)
    assert config.sources["buffer_capacity"] == "variable megaphone_buffer_capacity"


def test_agents_of_file_and_environment_are_joined_and_keep_their_spelling(tmp_path: Path) -> None:
    write(tmp_path, '[agent.virtual]\nA = "MASTER"\n')
    config = load(tmp_path, {"megaphone_agent.virtual.4D45": "REPLICA"})
    assert config.settings.agent == {"A": AgentMode.MASTER, "4D45": AgentMode.REPLICA}


def test_variables_in_upper_case_count_and_those_of_kubernetes_do_not(tmp_path: Path) -> None:
    environment = {
        "MEGAPHONE_BUFFER_CAPACITY": "5",
        "MEGAPHONE_PORT": "tcp://10.0.0.1:3000",
        "MEGAPHONE_SERVICE_HOST": "10.0.0.1",
    }
    assert load(tmp_path, environment).settings.buffer_capacity == 5


@pytest.mark.parametrize(("text", "value"), [("true", True), ("false", False), ("1", True)])
def test_switches_are_read_from_the_environment(tmp_path: Path, text: str, value: bool) -> None:
    settings = load(tmp_path, {"megaphone_legacy_channel_id_writes": text}).settings
    assert settings.legacy_channel_id_writes is value


@pytest.mark.parametrize(
    ("key", "wrong", "allowed"),
    [
        ("buffer_capacity", "0", "a whole number from 1 to 100000"),
        ("buffer_capacity", "many", "a whole number from 1 to 100000"),
        ("buffer_capacity", "1.5", "a whole number"),
        ("poll_duration_millis", "-1", "a whole number"),
        ("channel_ttl_secs", "0", "a number of seconds from 0.001"),
        ("channel_ttl_secs", "nan", "a number of seconds"),
        ("redelivery_window_secs", "inf", "a number of seconds from 0 to 86400"),
        ("legacy_channel_id_writes", "perhaps", "true or false"),
        ("log_format", "xml", "one of auto, text, json"),
        ("address", "localhost", "host:port"),
        ("address", "localhost:65536", "host:port"),
        ("grpc_address", "http://x:1", "host:port"),
        ("agent", "a b", "letters, digits"),
        ("agent", "", "letters, digits"),
        ("agent.virtual.n1", "SLAVE", "MASTER or REPLICA"),
        ("mng_socket_path", "", "a path"),
    ],
)
def test_a_wrong_value_is_answered_with_key_value_and_what_is_allowed(
    tmp_path: Path, key: str, wrong: str, allowed: str
) -> None:
    message = error_of(tmp_path, {f"megaphone_{key}": wrong})
    assert message.startswith(f"variable megaphone_{key}: ")
    assert f"= {json.dumps(wrong)} is not allowed; allowed is" in message
    assert allowed in message


def test_a_wrong_name_of_an_agent_in_a_table_is_named(tmp_path: Path) -> None:
    message = error_of(tmp_path, {"megaphone_agent.virtual.a/b": "MASTER"})
    assert '"a/b" is not allowed' in message
    assert "letters, digits" in message


def test_a_wrong_value_in_a_file_is_answered_with_the_name_of_the_file(tmp_path: Path) -> None:
    write(tmp_path, 'max_channels = "plenty"')
    assert error_of(tmp_path).startswith('megaphone.toml: max_channels = "plenty" is not allowed')


@pytest.mark.parametrize("agent", ['agent = ["a"]', "agent = 7", "[agent]\nvirtual = 7"])
def test_an_agent_of_another_form_is_refused(tmp_path: Path, agent: str) -> None:
    write(tmp_path, agent)
    assert "agent.virtual.node1" in error_of(tmp_path)


def test_webhooks_of_existing_configurations_are_understood(tmp_path: Path) -> None:
    hook = '{hook = "on-channel-deleted", endpoint = "http://localhost:1/?key=secret"}'
    write(tmp_path, f"[webhooks]\nbilling = {hook}")
    webhooks = load(tmp_path, {}).settings.webhooks
    assert webhooks["billing"].endpoint == "http://localhost:1/?key=secret"
    assert "secret" not in repr(webhooks)


@pytest.mark.parametrize(
    "hook",
    [
        '{hook = "on-channel-deleted"}',
        '{hook = "on-anything", endpoint = "http://localhost:1/?key=secret"}',
        '{hook = "on-channel-deleted", endpoint = "ftp://user:secret@localhost"}',
    ],
)
def test_a_wrong_webhook_is_refused_without_its_secrets(tmp_path: Path, hook: str) -> None:
    write(tmp_path, f"[webhooks]\nbilling = {hook}")
    message = error_of(tmp_path)
    assert message.startswith("megaphone.toml: webhooks = … is not allowed; allowed is tables")
    assert "secret" not in message


def test_an_unknown_key_is_answered_with_the_one_that_was_meant(tmp_path: Path) -> None:
    write(tmp_path, "bufer_capacity = 1")
    assert "did you mean buffer_capacity?" in error_of(tmp_path)
    assert "known keys are address" in error_of(tmp_path / "nowhere", {"megaphone_xyzzy": "1"})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("megaphone.toml", "a = = b"),
        ("megaphone.yaml", "a: [b"),
        ("megaphone.json", "{"),
        ("megaphone.json", "[1]"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, text: str) -> None:
    write(tmp_path, text, name)
    assert error_of(tmp_path).startswith(f"{name}: ")


def test_two_files_are_one_too_many(tmp_path: Path) -> None:
    write(tmp_path, "")
    write(tmp_path, "", "megaphone.yaml")
    assert "keep one" in error_of(tmp_path)


def test_a_named_file_is_read_and_a_missing_one_refused(tmp_path: Path) -> None:
    file = write(tmp_path, "max_channels = 3", "other.toml")
    assert load(tmp_path, {}, file).settings.max_channels == 3
    with pytest.raises(ConfigError, match=r"missing\.toml: cannot be read"):
        load(tmp_path, {}, tmp_path / "missing.toml")


def test_an_empty_file_is_as_good_as_none(tmp_path: Path) -> None:
    write(tmp_path, "", "megaphone.yaml")
    assert load(tmp_path, {}).settings.buffer_capacity == Settings().buffer_capacity


def test_every_setting_is_a_key_of_the_same_name() -> None:
    assert {setting.name for setting in fields(Settings)} == set(KEYS)
