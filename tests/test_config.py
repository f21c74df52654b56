"""Settings come from defaults, one file and the environment. Errors name the exact place."""

import json
import os
import re
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
from typer.testing import CliRunner

from megaphone.cli.config import config_app
from megaphone.config import KEYS, ConfigError, load
from megaphone.model import AgentMode
from megaphone.settings import Nodes, Settings, TenantLimits, Webhook
from tests.support.certificates import make_certificates


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
    assert (settings.address, settings.grpc_address) == ("127.0.0.1:3000", "127.0.0.1:3001")
    assert settings.nodes == Nodes(secret=None, previous_secret=None, open=False)


@pytest.mark.parametrize("count", [None, "1", "3", "64"])
def test_agents_without_names_get_new_ones_at_each_start(tmp_path: Path, count: str | None) -> None:
    environment = {} if count is None else {"megaphone_agent_count": count}
    names: set[str] = set()
    for _ in range(10):
        settings = load(tmp_path, environment).settings
        assert set(settings.agent.values()) == {AgentMode.MASTER}
        assert settings.agent_warmup_secs == 0
        assert len(settings.agent) == int(count or 1)
        assert names.isdisjoint(settings.agent)
        names |= settings.agent.keys()
    assert all(re.fullmatch("[0-9a-f]{16}", name) for name in names)


def test_agents_are_named_or_counted(tmp_path: Path) -> None:
    write(tmp_path, 'agent = "a"\nagent_count = 2\n')
    assert error_of(tmp_path) == (
        "megaphone.toml: agent_count is not allowed where agent is set (megaphone.toml),"
        " because the node makes agents only if no setting names one"
    )


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
        ("agent_count", "0", "from 1 to 1000"),
        ("agent_count", "1.5", "from 1 to 1000"),
        ("agent", "", "letters, digits"),
        ("agent.virtual.n1", "SLAVE", "MASTER or REPLICA"),
        ("agent.virtual.n1", "PIPED", "MASTER or REPLICA"),
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


def test_a_wrong_part_of_a_table_is_answered_with_the_source_of_that_part(tmp_path: Path) -> None:
    write(tmp_path, 'agent.virtual.b = "SLAVE"')
    others = {"megaphone_agent.virtual.a": "MASTER"}
    assert error_of(tmp_path, others).startswith("megaphone.toml: agent.virtual.b = ")
    wrong = {"megaphone_agent.virtual.b": "SLAVE"} | others
    message = error_of(tmp_path / "nowhere", wrong)
    assert message.startswith("variable megaphone_agent.virtual.b: agent.virtual.b = ")


# -- Webhooks


AUDIT = Webhook(endpoint="https://example.com/gone", secret="x y")


def test_webhooks_of_existing_configurations_are_understood(tmp_path: Path) -> None:
    hook = '{hook = "on-channel-deleted", endpoint = "http://localhost:1/?key=secret"}'
    write(tmp_path, f'webhooks_allow = ["localhost"]\n[webhooks]\nbilling = {hook}')
    webhooks = load(tmp_path, {}).settings.webhooks
    assert webhooks == {"billing": Webhook(endpoint="http://localhost:1/?key=secret")}
    assert webhooks["billing"].hook == "on-channel-deleted"


def test_there_are_no_webhooks_unless_they_are_set(tmp_path: Path) -> None:
    config = load(tmp_path, {})
    assert config.settings.webhooks == {}
    assert config.sources["webhooks"] == "default"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "megaphone.toml",
            '[webhooks.audit]\nendpoint = "https://example.com/gone"\nsecret = "x y"\n',
        ),
        ("megaphone.yaml", "webhooks: {audit: {endpoint: https://example.com/gone, secret: x y}}"),
        (
            "megaphone.json",
            '{"webhooks": {"audit": {"endpoint": "https://example.com/gone", "secret": "x y"}}}',
        ),
    ],
)
def test_webhooks_are_read_from_each_form_of_file(tmp_path: Path, name: str, text: str) -> None:
    write(tmp_path, text, name)
    assert load(tmp_path, {}).settings.webhooks == {"audit": AUDIT}


def test_webhooks_are_read_from_the_environment(tmp_path: Path) -> None:
    environment = {
        "megaphone_webhooks.audit.hook": "on-channel-deleted",
        "MEGAPHONE_WEBHOOKS.audit.endpoint": "https://example.com/gone",
        "megaphone_webhooks.audit.secret": "x y",
    }
    assert load(tmp_path, environment).settings.webhooks == {"audit": AUDIT}


def test_tenants_are_read_from_a_file_and_the_environment(tmp_path: Path) -> None:
    write(tmp_path, "[tenants.shop]\nwrites_per_s = 500\nchannels = 10\n[tenants.default]\n")
    config = load(tmp_path, {"megaphone_tenants.shop.channels": "20"})
    shop = TenantLimits(writes_per_s=500, channels=20)
    assert config.settings.tenants == {"shop": shop, "default": TenantLimits()}
    assert config.sources["tenants.shop.channels"] == "variable megaphone_tenants.shop.channels"
    assert config.sources["tenants.shop.reads"] == "default"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('tenants = "shop"', "allowed is at most 100 tables"),
        ("\n".join(f"[tenants.t{n}]" for n in range(101)), "allowed is at most 100 tables"),
        ('[tenants."a b"]', "allowed is as a name 1 to 64 letters"),
        ("[tenants.shop]\nwrites = 5", "tenants.shop.writes is not a known key"),
        ("[tenants.shop]\nwrites_per_s = 0", "tenants.shop.writes_per_s = … is not allowed"),
        ("[tenants.shop]\nchannels = -1", "a whole number from 0 to 100000000"),
    ],
)
def test_tenants_that_are_wrong_are_refused(tmp_path: Path, text: str, what: str) -> None:
    write(tmp_path, text)
    with pytest.raises(ConfigError) as refused:
        load(tmp_path, {})
    assert what in str(refused.value)


def test_the_networks_of_proxies(tmp_path: Path) -> None:
    variable = {"megaphone_trusted_proxies": "10.0.0.0/8, fd00::1"}
    assert load(tmp_path, variable).settings.trusted_proxies == ("10.0.0.0/8", "fd00::1")
    for wrong in ("10.0.0.0/99", "proxy.example.com", "1.2.3"):
        with pytest.raises(ConfigError, match="trusted_proxies"):
            load(tmp_path, {"megaphone_trusted_proxies": wrong})


@pytest.mark.parametrize(
    ("one", "other"), [("address", "grpc_address"), ("grpc_address", "ops_address")]
)
def test_each_place_to_listen_has_a_port_of_its_own(tmp_path: Path, one: str, other: str) -> None:
    variables = {f"megaphone_{key}": "127.0.0.1:5000" for key in (one, other)}
    with pytest.raises(ConfigError, match=rf"{other} = 127.0.0.1:5000 is that of {one} too"):
        load(tmp_path, variables)
    load(tmp_path, variables | {f"megaphone_{other}": "127.0.0.1:5001"})
    load(tmp_path, {"megaphone_address": "[::1]:0", "megaphone_grpc_address": "[::1]:0"})


def test_the_path_of_the_admin_socket_fits_into_one(tmp_path: Path) -> None:
    load(tmp_path, {"megaphone_mng_socket_path": "/" + 106 * "x"})
    with pytest.raises(ConfigError, match="has 108 bytes; the path of a socket has at most 107"):
        load(tmp_path, {"megaphone_mng_socket_path": "/" + 107 * "x"})


def test_a_webhook_may_have_its_secret_from_the_environment(tmp_path: Path) -> None:
    write(tmp_path, '[webhooks.audit]\nendpoint = "https://example.com/gone"\nsecret = "old"\n')
    config = load(tmp_path, {"megaphone_webhooks.audit.secret": "x y"})
    assert config.settings.webhooks == {"audit": AUDIT}
    assert config.sources["webhooks.audit.hook"] == "default"
    assert config.sources["webhooks.audit.endpoint"] == "megaphone.toml"
    assert config.sources["webhooks.audit.secret"] == "variable megaphone_webhooks.audit.secret"


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://localhost",
        "HTTPS://a-b.example.com:65535/x/y.php?a=b&c=%20/?",
        "http://user:pass%40word@10.0.0.1:8080?x",
        "http://[::1]:80/",
        "http://audit_service.default.svc.:1/@/:",
    ],
)
def test_an_endpoint_is_any_http_url(tmp_path: Path, endpoint: str) -> None:
    environment = {
        "megaphone_webhooks.audit.endpoint": endpoint,
        "megaphone_webhooks_allow": "127.0.0.0/8, 10.0.0.1,::1",
    }
    config = load(tmp_path, environment)
    assert config.settings.webhooks["audit"].endpoint == endpoint


@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        "geheim",
        "geheim.example.com/gone",
        "ftp://u:geheim@example.com",
        "http://?geheim",
        "http:///geheim",
        "http://u:geheim@example.com:65536/",
        "http://example.com/ge heim",
        "http://example.com/geheim\n",
        "http://example.com/?geheim=%xx",
        "http://example.com/#geheim",
        "http://example.com/?geheim=ü",
        "http://u:geheim@[12]/",
        "http://u:geheim@exa[mple.com/",
    ],
)
def test_another_endpoint_is_refused_without_being_shown(tmp_path: Path, endpoint: str) -> None:
    variable = "megaphone_webhooks.audit.endpoint"
    assert error_of(tmp_path, {variable: endpoint}) == (
        f"variable {variable}: webhooks.audit.endpoint = … is not allowed;"
        " allowed is an http or https URL in ASCII, such as https://example.com/gone"
    )


@pytest.mark.parametrize("secret", ["s", "a secret", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"])
def test_a_secret_is_a_text_or_a_key(tmp_path: Path, secret: str) -> None:
    write(tmp_path, '[webhooks.audit]\nendpoint = "http://example.com"\n')
    config = load(tmp_path, {"megaphone_webhooks.audit.secret": secret})
    assert config.settings.webhooks["audit"].secret == secret


@pytest.mark.parametrize("secret", ["", " geheim", "geheim\n", "whsec_", "whsec_geheim", "…"])
def test_another_secret_is_refused_without_being_shown(tmp_path: Path, secret: str) -> None:
    content = {"webhooks": {"audit": {"endpoint": "http://x", "secret": secret}}}
    write(tmp_path, json.dumps(content), "megaphone.json")
    assert error_of(tmp_path) == (
        "megaphone.json: webhooks.audit.secret = … is not allowed;"
        " allowed is a text without spaces around it, or whsec_ followed by a key in base64"
    )


@pytest.mark.parametrize(
    ("table", "answer"),
    [
        ('webhooks = "geheim"', "webhooks = … is not allowed; allowed is tables such as"),
        ("webhooks = [{}]", "webhooks = … is not allowed; allowed is tables such as"),
        ('[webhooks]\nendpoint = "geheim"', "webhooks.endpoint = … is not allowed; allowed is tab"),
        ('[webhooks."http://geheim"]', "webhooks = … is not allowed; allowed is as a name 1 to"),
        ("[webhooks.a]", "webhooks.a.endpoint is missing; allowed is an http"),
        ('[webhooks.a]\nhook = "geheim"', "webhooks.a.hook = … is not allowed; allowed is on-cha"),
        ('[webhooks.a]\nurl = "geheim"', "webhooks.a.url is not a known key; known keys are hook,"),
        ('[webhooks.a]\nendpiont = "geheim"', "webhooks.a.endpiont is not a known key; did you me"),
        ('[webhooks.a]\n"http://geheim" = 1', "webhooks.a = … is not allowed; allowed is tables"),
        ("[webhooks.a]\nsecret = 7", "webhooks.a.secret = … is not allowed; allowed is a text"),
        ("[webhooks.a.endpoint]\ngeheim = 1", "webhooks.a.endpoint = … is not allowed; allowed"),
        ("[webhooks.a.hook]\ngeheim = 1", "webhooks.a.hook = … is not allowed; allowed"),
    ],
)
def test_a_wrong_webhook_is_refused_without_its_secrets(
    tmp_path: Path, table: str, answer: str
) -> None:
    write(tmp_path, table)
    message = error_of(tmp_path)
    assert message.startswith(f"megaphone.toml: {answer}")
    assert "geheim" not in message


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1:8080", "10.0.0.1", "[::1]", "2130706433", "169.254.169.254"]
)
def test_an_endpoint_at_a_private_address_is_refused_by_the_name_of_the_setting(
    tmp_path: Path, host: str
) -> None:
    write(tmp_path, f'[webhooks.audit]\nendpoint = "http://u:geheim@{host}/geheim"\n')
    assert error_of(tmp_path) == (
        "megaphone.toml: webhooks.audit.endpoint = … is not allowed, because its address is not"
        " public: webhooks_allow lists the networks and hosts that webhooks may call besides"
    )


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("webhooks_allow: [10.0.0.0/8, billing]", ("10.0.0.0/8", "billing")),
        ("webhooks_allow: 10.0.0.0/8, billing", ("10.0.0.0/8", "billing")),
        ("webhooks_allow: []", ()),
    ],
)
def test_the_destinations_of_webhooks_are_a_list(
    tmp_path: Path, text: str, allowed: tuple[str, ...]
) -> None:
    write(tmp_path, text, "megaphone.yaml")
    assert load(tmp_path, {}).settings.webhooks_allow == allowed


@pytest.mark.parametrize(
    ("entry", "error"),
    [
        ("10.0.0.1/8", "10.0.0.1/8 has host bits set"),
        ("https://x", "'https://x' does not appear to be an IPv4 or IPv6 network"),
        ("", "is not allowed; allowed is a list, each entry of which is a network such as"),
    ],
)
def test_a_wrong_destination_of_webhooks_is_refused(tmp_path: Path, entry: str, error: str) -> None:
    write(tmp_path, f'webhooks_allow = ["{entry}"]')
    assert error_of(tmp_path).startswith("megaphone.toml: webhooks_allow")
    assert error in error_of(tmp_path)


def test_a_wrong_part_of_a_webhook_is_looked_for_where_it_stands(tmp_path: Path) -> None:
    write(tmp_path, '[webhooks.audit]\nendpoint = "ftp://x"\n')
    environment = {
        "megaphone_webhooks.audit.secret": "x",
        "megaphone_webhooks.b.endpoint": "http://b",
    }
    assert error_of(tmp_path, environment).startswith("megaphone.toml: webhooks.audit.endpoint = …")
    environment["megaphone_webhooks.audit.endpoint"] = "http://x"
    assert load(tmp_path, environment).settings.webhooks["audit"].endpoint == "http://x"


@pytest.mark.parametrize(
    "secret", ["*geheim", "!geheim x", "!geheim!x y", "[geheim", "a: geheim", '"geheim', "@geheim"]
)
def test_a_file_that_cannot_be_read_is_not_quoted(tmp_path: Path, secret: str) -> None:
    write(tmp_path, f"webhooks:\n  audit:\n    secret: {secret}\n", "megaphone.yaml")
    message = error_of(tmp_path)
    assert re.search(r"is not YAML: .* in line \d, column \d+$", message)
    assert "geheim" not in message


def test_secrets_are_not_in_the_text_of_settings() -> None:
    webhook = Webhook(endpoint="http://u:geheim@localhost/?geheim", secret="geheim")
    assert "geheim" not in repr(Settings(webhooks={"audit": webhook}))


WEBHOOKS = """
[webhooks.plain]
hook = "on-channel-deleted"
endpoint = "https://example.com/gone"
[webhooks.signed]
endpoint = "https://example.com:8443/gone"
secret = "geheim \U0001f511"
[webhooks.user]
endpoint = "https://user:geheim@example.com/gone"
[webhooks.query]
endpoint = "https://example.com/gone?key=geheim"
"""


def command(directory: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """Return what `megaphone config` prints in a directory."""
    monkeypatch.chdir(directory)
    for name in os.environ:
        if name.lower().startswith("megaphone_"):
            monkeypatch.delenv(name)
    done = CliRunner().invoke(config_app, arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_show_prints_webhooks_without_their_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, WEBHOOKS)
    printed = command(tmp_path, monkeypatch, "show")
    assert "geheim" not in printed
    assert '\n# secret = "…" ' in printed
    assert '\n# endpoint = "https://…@example.com/gone" ' in printed
    assert '\n# endpoint = "https://example.com/gone?…" ' in printed
    assert tomllib.loads(printed)["webhooks"] == {
        "plain": {"hook": "on-channel-deleted", "endpoint": "https://example.com/gone"},
        "signed": {"hook": "on-channel-deleted", "endpoint": "https://example.com:8443/gone"},
        "user": {"hook": "on-channel-deleted"},
        "query": {"hook": "on-channel-deleted"},
    }


def test_what_show_prints_of_webhooks_can_be_loaded_and_shown_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, WEBHOOKS.partition("[webhooks.user]")[0])
    printed = command(tmp_path, monkeypatch, "show")
    write(tmp_path, printed)
    assert tomllib.loads(command(tmp_path, monkeypatch, "show")) == tomllib.loads(printed)


def test_an_endpoint_that_was_not_shown_is_missed_and_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, WEBHOOKS)
    write(tmp_path, command(tmp_path, monkeypatch, "show"))
    assert "webhooks.user.endpoint is missing" in error_of(tmp_path)


def test_with_secrets_show_prints_a_configuration_that_means_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, f'agent = "a"\n{WEBHOOKS}')
    before = load(tmp_path, {}).settings
    write(tmp_path, command(tmp_path, monkeypatch, "show", "--secrets"))
    assert load(tmp_path, {}).settings == before
    assert before.webhooks["signed"].secret == "geheim \U0001f511"


def test_parts_of_webhooks_do_not_count_as_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, WEBHOOKS)
    assert "1 from megaphone.toml" in command(tmp_path, monkeypatch, "check")


# -- The secret of nodes


NODE_SECRET = "geheim/geheim+geheim=geheim:abcde"
PREVIOUS = "geheim-geheim-geheim-geheim-zyxw"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("megaphone.toml", f'[nodes]\nsecret = "{NODE_SECRET}"\nprevious_secret = "{PREVIOUS}"\n'),
        ("megaphone.yaml", f"nodes: {{secret: '{NODE_SECRET}', previous_secret: {PREVIOUS}}}"),
        (
            "megaphone.json",
            json.dumps({"nodes": {"secret": NODE_SECRET, "previous_secret": PREVIOUS}}),
        ),
    ],
)
def test_the_secret_of_nodes_is_read_from_each_form_of_file(
    tmp_path: Path, name: str, text: str
) -> None:
    write(tmp_path, text, name)
    config = load(tmp_path, {})
    assert config.settings.nodes == Nodes(secret=NODE_SECRET, previous_secret=PREVIOUS)
    assert config.sources["nodes.secret"] == name
    assert config.sources["nodes.open"] == "default"


@pytest.mark.parametrize("prefix", ["megaphone_nodes.", "MEGAPHONE_NODES."])
def test_the_secret_of_nodes_may_come_from_the_environment(tmp_path: Path, prefix: str) -> None:
    write(tmp_path, f'[nodes]\nsecret = "{PREVIOUS}"\nopen = true\n')
    name = prefix + ("SECRET" if prefix.isupper() else "secret")
    config = load(tmp_path, {name: NODE_SECRET})
    assert config.settings.nodes == Nodes(secret=NODE_SECRET, open=True)
    assert config.sources["nodes.secret"] == f"variable {name}"
    assert config.sources["nodes.open"] == "megaphone.toml"
    assert config.sources["nodes.previous_secret"] == "default"


@pytest.mark.parametrize(("text", "value"), [("true", True), ("false", False), ("1", True)])
def test_whether_a_node_is_open_is_a_switch(tmp_path: Path, text: str, value: bool) -> None:
    assert load(tmp_path, {"megaphone_nodes.open": text}).settings.nodes.open is value


@pytest.mark.parametrize(
    "secret", ["", "geheim", f" {NODE_SECRET}", f"{NODE_SECRET}\n", "geheim " * 8, "gehäim" * 8]
)
@pytest.mark.parametrize("key", ["secret", "previous_secret"])
def test_another_secret_of_nodes_is_refused_without_being_shown(
    tmp_path: Path, key: str, secret: str
) -> None:
    variable = f"megaphone_nodes.{key}"
    assert error_of(tmp_path, {variable: secret}) == (
        f"variable {variable}: nodes.{key} = … is not allowed; allowed is at least 32 ASCII"
        " characters without spaces: `openssl rand -base64 32` makes them"
    )


@pytest.mark.parametrize(
    ("table", "answer"),
    [
        (f'nodes = "{NODE_SECRET}"', "nodes = … is not allowed; allowed is a table such as"),
        (f'[nodes]\nsecert = "{NODE_SECRET}"', "nodes.secert is not a known key; did you mean sec"),
        (f'[nodes]\n"{NODE_SECRET}" = 1', "nodes = … is not allowed; allowed is a table such as"),
        ('[nodes]\nopen = "geheim"', "nodes.open = … is not allowed; allowed is true or false"),
        (f'[nodes.secret]\nx = "{NODE_SECRET}"', "nodes.secret = … is not allowed; allowed is at"),
        (
            f'[nodes]\nprevious_secret = "{NODE_SECRET}"',
            "nodes.previous_secret is set, but not nodes.secret, which takes its place",
        ),
    ],
)
def test_wrong_settings_of_nodes_are_refused_without_their_secrets(
    tmp_path: Path, table: str, answer: str
) -> None:
    write(tmp_path, table)
    message = error_of(tmp_path)
    assert message.startswith(f"megaphone.toml: {answer}")
    assert "geheim" not in message


def test_the_secrets_of_nodes_are_shown_only_when_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, f'[nodes]\nsecret = "{NODE_SECRET}"\nprevious_secret = "{PREVIOUS}"\n')
    before = load(tmp_path, {}).settings
    assert "geheim" not in repr(before)
    printed = command(tmp_path, monkeypatch, "show")
    assert "geheim" not in printed
    assert '\n[nodes]\n# secret = "…" ' in printed
    assert '\n# previous_secret = "…" ' in printed
    assert tomllib.loads(printed)["nodes"] == {"names": [], "open": False}
    write(tmp_path, command(tmp_path, monkeypatch, "show", "--secrets"))
    assert load(tmp_path, {}).settings.nodes == before.nodes


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('[nodes]\ncertificate = "c"\n', "nodes.certificate is set, but not nodes.key"),
        ('[nodes]\nca = "c"\n', "nodes.ca is set, but not nodes.certificate"),
        ('[nodes]\naddress = "[::]:1"\n', "nodes.address is set, but not nodes.certificate"),
        (
            '[nodes]\naddress = "[::]:1"\ncertificate = "c"\nkey = "k"\nca = "a"\n',
            "nodes.address is set, but not nodes.names",
        ),
        (
            'drain_target = "https://other:3002"\n',
            "drain_target is at https://, but nodes.certificate is not set",
        ),
        ('[tls]\ncertificate = "c"\n', "tls.certificate is set, but not tls.key"),
        ('[tls]\nclient_ca = "c"\n', "tls.client_ca is set, but not tls.certificate"),
    ],
)
def test_half_of_what_tls_needs_is_refused(tmp_path: Path, text: str, error: str) -> None:
    write(tmp_path, text)
    assert error_of(tmp_path).startswith(f"megaphone.toml: {error}")


def test_the_check_looks_into_the_files_of_certificates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_certificates(tmp_path)
    write(tmp_path, f'[tls]\ncertificate = "{made.certificate}"\nkey = "{made.key}"\n')
    assert "in order" in command(tmp_path, monkeypatch, "check")
    made.key.write_text("wrong")
    done = CliRunner().invoke(config_app, "check")
    assert done.exit_code == 2
    assert "tls.key: " in done.output


def test_nodes_that_share_a_store_have_no_address_for_each_other(tmp_path: Path) -> None:
    write(
        tmp_path,
        'store = "redis://localhost:1"\n[nodes]\naddress = "[::]:1"\ncertificate = "c"\n'
        'key = "k"\nca = "a"\nnames = "spiffe://example.org/*"\n',
    )
    assert "nodes.address is not allowed with a shared store" in error_of(tmp_path)


# -- Files and keys


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


def test_an_option_of_the_command_line_wins(tmp_path: Path) -> None:
    shared = {"megaphone_store": "redis://localhost", "megaphone_workers": "2"}
    assert load(tmp_path, shared).settings.workers == 2
    loaded = load(tmp_path, shared, options={"workers": 3})
    assert (loaded.settings.workers, loaded.sources["workers"]) == (3, "--workers")


def test_several_workers_need_a_store_that_they_share(tmp_path: Path) -> None:
    for count in ("0", "2"):
        error = error_of(tmp_path, {"megaphone_workers": count})
        assert f"variable megaphone_workers: workers = {count} is not allowed" in error
    assert load(tmp_path, {"megaphone_workers": "1"}).settings.workers == 1


def test_workers_share_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megaphone.process.memory._limits", lambda: iter([8 << 30]))
    shared = {"megaphone_store": "redis://localhost"}
    one = load(tmp_path, shared).settings.max_buffered_bytes
    four = load(tmp_path, shared, options={"workers": 4}).settings.max_buffered_bytes
    assert (one, four) == (4 << 30, 1 << 30)
