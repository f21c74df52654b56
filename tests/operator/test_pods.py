"""The pods of nodes and proxies: the broker takes what nodes are told, and nginx its files."""

import ssl
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any

import pytest

from megaphone.config import load
from megaphone.model import AgentMode
from megaphone.settings import Settings
from megaphone_operator.plan.names import TEMPLATE, Names
from megaphone_operator.plan.nodes import node_deployment, node_template_checksum
from megaphone_operator.plan.objects import CERTIFICATE_FOLDER, Surroundings
from megaphone_operator.plan.proxies import configuration, proxy_objects
from tests.operator.world import SURROUNDINGS, UID, make_resource
from tests.support.certificates import Authority
from tests.support.documented import ROOT
from tests.support.nginx import needs_nginx, nginx

STORE = {"redis": {"urlSecret": {"name": "store"}}}
SECRETS = {
    "megaphone_nodes.secret": "0123456789abcdef0123456789abcdef",
    "megaphone_store": "redis://store:6379",
}


def pod(**spec: Any) -> dict[str, Any]:
    """Return the template of a node."""
    template: dict[str, Any] = node_deployment(make_resource(**spec))["spec"]["template"]
    return template


def container(**spec: Any) -> dict[str, Any]:
    [one] = pod(**spec)["spec"]["containers"]
    found: dict[str, Any] = one
    return found


def environment(**spec: Any) -> dict[str, str]:
    """Return the variables of such a container, with the secrets that it is given."""
    env = {}
    for variable in container(**spec)["env"]:
        if "value" in variable:
            env[variable["name"]] = variable["value"]
        elif variable["name"] in SECRETS:
            env[variable["name"]] = SECRETS[variable["name"]]
    return env


def settings(folder: Path, **spec: Any) -> Settings:
    """Return the settings that the broker reads in such a container."""
    return load(folder, environment(**spec)).settings


def test_the_broker_takes_what_a_node_with_memory_is_told(tmp_path: Path) -> None:
    found = settings(
        tmp_path,
        virtualAgentsPerNode=3,
        drainTimeoutSeconds=45,
        settings={"channel_ttl_secs": "300", "buffer_capacity": "7"},
    )
    assert (found.address, found.grpc_address) == ("0.0.0.0:3000", "0.0.0.0:3001")
    assert found.ops_address == "0.0.0.0:3002"
    assert (found.agent_count, found.channel_ttl_secs, found.buffer_capacity) == (3, 300, 7)
    assert (found.drain_target, found.drain_timeout_secs) == ("http://mgp-demo-nodes:3001", 45)
    assert found.drain_target_gone_secs == 5
    assert found.nodes.secret == SECRETS["megaphone_nodes.secret"]
    assert found.store == "memory"


def test_nodes_with_a_store_all_have_the_same_agents(tmp_path: Path) -> None:
    found = settings(tmp_path, store=STORE, virtualAgentsPerNode=2)
    again = settings(tmp_path, store=STORE, virtualAgentsPerNode=2, image="broker:2")
    assert found.store == SECRETS["megaphone_store"]
    assert len(found.agent) == 2
    assert set(found.agent.values()) == {AgentMode.MASTER}
    assert found.agent == again.agent
    assert found.drain_target is None
    assert found.agent_warmup_secs == 0


def test_the_user_may_let_agents_wait(tmp_path: Path) -> None:
    assert settings(tmp_path, settings={"agent_warmup_secs": "9"}).agent_warmup_secs == 9


def test_nodes_without_proxies_show_the_certificate(tmp_path: Path) -> None:
    tls = {"secretName": "certificate"}
    found = container(tls=tls, proxy={"enabled": False}, agentServices=False)
    assert {"name": "megaphone_tls.certificate", "value": "/etc/megaphone-tls/tls.crt"} in found[
        "env"
    ]
    behind_proxies = container(tls=tls)
    assert not any("tls" in variable["name"] for variable in behind_proxies["env"])


def test_a_node_has_time_for_its_drain() -> None:
    assert pod(drainTimeoutSeconds=100)["spec"]["terminationGracePeriodSeconds"] == 130


def test_a_node_has_no_rights_and_no_token() -> None:
    spec = pod()["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False  # their variables would look like settings
    assert spec["securityContext"]["runAsNonRoot"]
    context = spec["containers"][0]["securityContext"]
    assert context["readOnlyRootFilesystem"]
    assert context["capabilities"] == {"drop": ["ALL"]}


def test_the_user_adds_to_pods_but_changes_no_label_that_finds_them() -> None:
    template = {
        "labels": {"team": "a", "megaphone-cluster": "other"},
        "annotations": {"note": "b"},
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"key": "spot"}],
        "priorityClassName": "high",
        "env": [{"name": "TZ", "value": "UTC"}, {"name": "megaphone_address", "value": "x"}],
        "volumes": [{"name": "own", "emptyDir": {}}, {"name": "tmp", "hostPath": {"path": "/"}}],
        "volumeMounts": [{"name": "own", "mountPath": "/own"}],
    }
    made = pod(podTemplate=template)
    assert made["metadata"]["labels"]["team"] == "a"
    assert made["metadata"]["labels"]["megaphone-cluster"] == "demo"
    assert made["metadata"]["annotations"]["note"] == "b"
    spec = made["spec"]
    assert (spec["nodeSelector"], spec["priorityClassName"]) == ({"disk": "ssd"}, "high")
    assert spec["tolerations"] == [{"key": "spot"}]
    assert [volume["name"] for volume in spec["volumes"]] == ["tmp", "own"]
    assert spec["volumes"][0] == {"name": "tmp", "emptyDir": {}}
    variables = spec["containers"][0]["env"]
    env = {one["name"]: one["value"] for one in variables if "value" in one}
    assert (env["TZ"], env["megaphone_address"]) == ("UTC", "0.0.0.0:3000")


def test_labels_find_the_nodes_and_only_them() -> None:
    names = Names("demo", UID)
    labels = pod()["metadata"]["labels"]
    assert names.node_selector.items() <= labels.items()
    assert labels["accepts-new-channels"] == "ON"  # for services that users made
    proxies = list(proxy_objects(make_resource(), SURROUNDINGS))[-1]["spec"]["template"]
    assert not names.node_selector.items() <= proxies["metadata"]["labels"].items()


def test_the_checksum_is_that_of_the_template() -> None:
    resource = make_resource()
    assert pod()["metadata"]["annotations"][TEMPLATE] == node_template_checksum(resource)
    changes: list[dict[str, Any]] = [
        {"image": "broker:2"},
        {"settings": {"channel_ttl_secs": "1"}},
        {"resources": {"limits": {"cpu": "1"}}},
        {"virtualAgentsPerNode": 2},
        {"podTemplate": {"labels": {"a": "b"}}},
    ]
    sums = {node_template_checksum(make_resource(**change)) for change in changes}
    assert len(sums | {node_template_checksum(resource)}) == len(changes) + 1
    scaled = make_resource(replicas=9, minReadySeconds=3, networkPolicy={"enabled": True})
    assert node_template_checksum(scaled) == node_template_checksum(resource)


# -- Proxies


def test_proxies_have_the_files_of_the_repository() -> None:
    files = configuration(make_resource(), SURROUNDINGS)
    for name in ("nginx.conf", "megaphone.conf", "questions.conf", "question.conf"):
        assert files[name] == (ROOT / "deploy" / "nginx" / name).read_text()
    assert "default mgp-demo-nodes.default.svc.cluster.local:3002;" in files["nodes.conf"]
    assert "default mgp-demo-takers.default.svc.cluster.local:3002;" in files["nodes.conf"]


@pytest.mark.parametrize(
    ("address", "line"),
    [
        ("10.0.0.10", "resolver 10.0.0.10 valid=1s ipv6=off;"),
        ("fd00::a", "resolver [fd00::a] valid=1s;"),
    ],
)
def test_the_name_server_may_have_an_address_of_either_kind(address: str, line: str) -> None:
    surroundings = Surroundings("example.org", address, "x", SURROUNDINGS.nginx)
    files = configuration(make_resource(), surroundings)
    assert line in files["nodes.conf"].splitlines()
    assert "mgp-demo-nodes.default.svc.example.org:3002" in files["nodes.conf"]


def test_other_files_make_other_pods() -> None:
    def annotation(**spec: Any) -> str:
        *_, deployment = proxy_objects(make_resource(**spec), SURROUNDINGS)
        annotations = deployment["spec"]["template"]["metadata"]["annotations"]
        return str(annotations["d71.dev/configuration"])

    assert annotation() == annotation(image="broker:2")
    assert annotation() != annotation(tls={"secretName": "x"})


@needs_nginx
def test_nginx_shows_the_certificate_and_a_renewed_one(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificates = authority.issue("tls")
    folder = tmp_path / "certificates"
    folder.mkdir(mode=0o755)
    for parent in (tmp_path, *tmp_path.parents):
        if parent.name.startswith("pytest"):
            parent.chmod(0o755)  # the workers of nginx may be another user's

    def show() -> None:
        (folder / "tls.crt").write_bytes(certificates.certificate.read_bytes())
        (folder / "tls.key").write_bytes(certificates.key.read_bytes())

    show()
    files = configuration(make_resource(tls={"secretName": "certificate"}), SURROUNDINGS)
    source = tmp_path / "source"
    source.mkdir()
    for name, text in files.items():
        (source / name).write_text(text)
    nodes = files["nodes.conf"].replace(CERTIFICATE_FOLDER, str(folder))
    trusting = ssl.create_default_context(cafile=authority.file)
    with nginx(tmp_path / "nginx", nodes, source) as proxy:
        first = shown_certificate(proxy.http_port, trusting)
        certificates = authority.issue("tls")
        show()
        assert shown_certificate(proxy.http_port, trusting) != first
        assert shown_certificate(proxy.grpc_port, trusting) != first


def shown_certificate(port: int, trusting: ssl.SSLContext) -> bytes:
    connection = HTTPSConnection("localhost", port, context=trusting, timeout=10)
    connection.connect()
    assert isinstance(connection.sock, ssl.SSLSocket)
    found = connection.sock.getpeercert(binary_form=True)
    connection.close()
    assert found is not None
    return found
