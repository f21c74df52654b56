"""What is in deploy/ for nodes that share a store agrees with the rest."""

from pathlib import Path
from typing import Any

import yaml

from megaphone.config import load
from megaphone.store.redis.requirements import NEVER_EVICTS
from megaphone.store.redis.url import StoreUrl
from tests.support.nginx import DEPLOY, SHARED

COMPOSE = yaml.safe_load((DEPLOY / "compose.store.yaml").read_text())
SERVICES = COMPOSE["services"]
KUBERNETES = list(yaml.safe_load_all((DEPLOY / "shared" / "kubernetes.yaml").read_text()))
KUSTOMIZATION = yaml.safe_load((DEPLOY / "shared" / "kustomization.yaml").read_text())
NODES = ("node-1", "node-2", "node-3")


def kind(name: str) -> Any:
    [found] = [one for one in KUBERNETES if one["kind"] == name]
    return found


def test_compose_runs_the_store_that_the_nodes_name(tmp_path: Path) -> None:
    for name in NODES:
        settings = load(tmp_path, SERVICES[name]["environment"]).settings
        [endpoint] = StoreUrl.parse(settings.store).endpoints
        assert endpoint.host in SERVICES
        assert SERVICES[name]["depends_on"] == {endpoint.host: {"condition": "service_healthy"}}
    command = " ".join(SERVICES["store"]["command"])
    assert f"--maxmemory-policy {NEVER_EVICTS}" in command
    assert "ports" not in SERVICES["store"]


def test_nginx_names_the_nodes_of_compose_and_gets_its_files() -> None:
    nodes = (SHARED / "nodes.conf").read_text()
    for name in NODES:
        assert nodes.count(f"server {name}:") == 2
    mounted = [volume.split(":")[0] for volume in SERVICES["proxy"]["volumes"]]
    assert {DEPLOY / name for name in mounted} == set(SHARED.iterdir())
    assert set(SERVICES["proxy"]["depends_on"]) == set(NODES)


def test_the_pods_get_the_url_from_a_secret_that_is_not_in_the_files(tmp_path: Path) -> None:
    [container] = kind("Deployment")["spec"]["template"]["spec"]["containers"]
    [variable] = container["env"]
    [generator] = KUSTOMIZATION["secretGenerator"]
    key = variable["valueFrom"]["secretKeyRef"]
    assert key == {"name": generator["name"], "key": "url"}
    assert load(tmp_path, {variable["name"]: "redis://a:b@c"}).settings.store == "redis://a:b@c"
    [file] = generator["envs"]
    ignored = (DEPLOY.parent / ".gitignore").read_text().split()
    assert f"/deploy/shared/{file}" in ignored


def test_the_service_leads_to_the_pods() -> None:
    template = kind("Deployment")["spec"]["template"]
    assert kind("Service")["spec"]["selector"].items() <= template["metadata"]["labels"].items()
    assert template["spec"]["securityContext"]["runAsNonRoot"]
    [container] = template["spec"]["containers"]
    named = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert {port["name"]: port["port"] for port in kind("Service")["spec"]["ports"]} == named
    for resource in KUSTOMIZATION["resources"]:
        assert (DEPLOY / "shared" / resource).is_file()
