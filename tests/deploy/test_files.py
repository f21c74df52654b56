"""What is in deploy/ agrees with the rest: settings, files, commands and versions that it names."""

import json
import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from megaphone.cli.token import token_app
from megaphone.cluster.moves import PROXIES_KNOW_AFTER_S
from megaphone.config import load
from megaphone.listen.exposure import accepted_sources
from megaphone_client import Unauthenticated
from megaphone_client.sync import Megaphone
from tests.support.build import pure_only
from tests.support.process import BrokerProcess, broker_process

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
KUBERNETES = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))
KUSTOMIZATION = yaml.safe_load((DEPLOY / "kustomization.yaml").read_text())


def pod(name: str) -> Any:
    [spec] = [
        one["spec"]["template"]["spec"]
        for one in KUBERNETES
        if one["kind"] == "Deployment" and one["metadata"]["name"] == name
    ]
    return spec


SECRET_FILE = f"secret={'s' * 43}=\nprevious_secret={'p' * 43}=\n"
"""What operators put into the file that kustomization.yaml names, with lines of base64."""


def environments() -> list[dict[str, str]]:
    """Return what nodes get from compose and from Kubernetes, and from the image in both."""
    image = dict(
        setting.split("=")
        for line in re.findall(r"^ENV (.+)$", DOCKERFILE, re.MULTILINE)
        for setting in line.split()
    )
    return [image | of_compose({"MEGAPHONE_NODE_SECRET": "s" * 44}), image | of_kubernetes()]


def of_compose(shell: dict[str, str], services: Any = COMPOSE) -> dict[str, str]:
    """Return the environment that compose makes, with the variables of a shell put in."""
    environment: dict[str, str] = {}
    for name, value in services["megaphone"]["environment"].items():
        wanted = re.fullmatch(r"\$\{(\w+):\?[^${}]+\}", value)
        environment[name] = shell[wanted[1]] if wanted else value
    return environment


def of_kubernetes() -> dict[str, str]:
    [container] = pod("megaphone")["containers"]
    [generator] = KUSTOMIZATION["secretGenerator"]
    secret = dict(line.split("=", 1) for line in SECRET_FILE.splitlines())
    environment: dict[str, str] = {}
    for entry in container["env"]:
        if "value" in entry:
            environment[entry["name"]] = entry["value"]
        else:
            key = entry["valueFrom"]["secretKeyRef"]
            assert key["name"] == generator["name"]
            environment[entry["name"]] = secret[key["key"]]
    return environment


@pytest.mark.parametrize("environment", environments(), ids=["compose", "kubernetes"])
def test_the_settings_are_settings_of_the_broker(
    environment: dict[str, str], tmp_path: Path
) -> None:
    settings = load(tmp_path, environment).settings
    assert settings.drain_target == "http://megaphone:3001"
    assert (settings.address, settings.grpc_address) == ("0.0.0.0:3000", "0.0.0.0:3001")
    assert accepted_sources(settings) == "nodes that have the same secret"


def test_with_the_file_for_tokens_only_back_ends_create_channels(tmp_path: Path) -> None:
    made = CliRunner().invoke(token_app, ["new", "back-end"])
    token = made.stdout.strip()
    services = yaml.safe_load((DEPLOY / "compose.auth.yaml").read_text())["services"]
    [digest] = re.findall(r'sha256 = "(\w+)"', made.stderr)
    environment = of_compose({"MEGAPHONE_TOKEN_SHA256": digest}, services)
    with pytest.raises(KeyError, match="MEGAPHONE_TOKEN_SHA256"):
        of_compose({}, services)
    settings: dict[str, Any] = {
        name.removeprefix("megaphone_"): value for name, value in environment.items()
    }
    with broker_process(tmp_path, **settings) as broker:
        with Megaphone.from_url(broker.url, token=token) as back_end:
            channel = back_end.create()
        with Megaphone.from_url(broker.url) as anybody:
            assert anybody.write(channel.producer, "s", 1)
            with pytest.raises(Unauthenticated):
                anybody.create()


def test_no_secret_is_in_the_files_and_none_is_made_up() -> None:
    with pytest.raises(KeyError, match="MEGAPHONE_NODE_SECRET"):
        of_compose({})
    [generator] = KUSTOMIZATION["secretGenerator"]
    assert generator.keys() == {"name", "envs"}
    [file] = generator["envs"]
    assert f"/deploy/{file}" in (ROOT / ".gitignore").read_text().split()
    [container] = pod("megaphone")["containers"]
    optional = [
        entry["name"]
        for entry in container["env"]
        if entry.get("valueFrom", {}).get("secretKeyRef", {}).get("optional")
    ]
    assert optional == ["megaphone_nodes.previous_secret"]


def test_a_node_is_given_the_time_that_a_drain_may_take(tmp_path: Path) -> None:
    [of_compose, of_kubernetes] = [
        load(tmp_path, environment).settings.drain_timeout_secs for environment in environments()
    ]
    assert COMPOSE["megaphone"]["stop_grace_period"] == "60s"
    assert pod("megaphone")["terminationGracePeriodSeconds"] == 60
    assert of_compose == of_kubernetes < 50


def test_every_file_that_is_named_is_there() -> None:
    mounted = [volume.split(":")[0] for volume in COMPOSE["proxy"]["volumes"]]
    [generator] = KUSTOMIZATION["configMapGenerator"]
    generated = [file.rpartition("=")[2] for file in generator["files"]]
    for name in (*mounted, *generated, *KUSTOMIZATION["resources"]):
        assert (DEPLOY / name).is_file(), name
    assert (DEPLOY / COMPOSE["megaphone"]["build"]["dockerfile"].removeprefix("deploy/")).is_file()


def test_nginx_gets_all_that_it_includes() -> None:
    mounted = {Path(volume.split(":")[1]).name for volume in COMPOSE["proxy"]["volumes"]}
    assert mounted == included_with("nodes-dns.conf")
    [generator] = KUSTOMIZATION["configMapGenerator"]
    entries = [*generator["files"], *generator["literals"]]
    generated = {Path(entry.partition("=")[0]).name for entry in entries}
    assert generated == included_with("nodes-kubernetes.conf")


def included_with(nodes: str) -> set[str]:
    """Return the files that nginx needs if one of deploy/nginx is its nodes.conf."""
    included = {"nginx.conf"}
    for file in (DEPLOY / "nginx").glob("*.conf"):
        if not file.name.startswith("nodes-") or file.name == nodes:
            found = re.findall(r"^\s*include ([a-z.]+);", file.read_text(), re.MULTILINE)
            included |= set(found)
    return included


def test_every_proxy_knows_a_new_node_before_the_next_one_stops() -> None:
    [nodes] = [
        one["spec"]
        for one in KUBERNETES
        if one["kind"] == "Deployment" and one["metadata"]["name"] == "megaphone"
    ]
    assert nodes["minReadySeconds"] > PROXIES_KNOW_AFTER_S
    assert nodes["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


@pytest.mark.parametrize("file", ["kubernetes.yaml", "shared/kubernetes.yaml"])
def test_the_pods_of_each_deployment_are_evicted_one_at_a_time(file: str) -> None:
    found = list(yaml.safe_load_all((DEPLOY / file).read_text()))
    budgets = {
        one["metadata"]["name"]: one["spec"]
        for one in found
        if one["kind"] == "PodDisruptionBudget"
    }
    selectors = {
        one["metadata"]["name"]: one["spec"]["selector"]
        for one in found
        if one["kind"] == "Deployment"
    }
    assert budgets == {
        name: {"maxUnavailable": 1, "selector": selector} for name, selector in selectors.items()
    }


def test_the_names_that_nginx_looks_up_are_those_of_headless_services() -> None:
    looked_up = (DEPLOY / "nginx" / "nodes-kubernetes.conf").read_text()
    named = re.findall(r"default ([a-z-]+)\.default\.svc\.cluster\.local:3000;", looked_up)
    services = {
        one["metadata"]["name"]: one["spec"] for one in KUBERNETES if one["kind"] == "Service"
    }
    [nodes, takers] = [services[name] for name in named]
    assert nodes["clusterIP"] == takers["clusterIP"] == "None"
    assert nodes["publishNotReadyAddresses"]
    assert "publishNotReadyAddresses" not in takers
    [container] = pod("megaphone")["containers"]
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz/create"


@pure_only("the source is hidden from these tests")
def test_the_image_gets_all_that_is_copied_into_it() -> None:
    lines = (ROOT / ".dockerignore").read_text().split()
    kept = [line.removeprefix("!") for line in lines if line.startswith("!")]
    copies = re.findall(r"^COPY (?!--from)(.+) /\S+$", DOCKERFILE, re.MULTILINE)
    for source in " ".join(copies).split():
        assert (ROOT / source).exists(), source
        assert any(fnmatch(source, pattern) for pattern in kept), source


def test_the_commands_of_the_image_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [linked] = re.findall(r"ln -s (.+) /app/$", DOCKERFILE, re.MULTILINE)
    assert {Path(path).name for path in linked.split()} == set(project["scripts"])
    assert json.loads(DOCKERFILE.splitlines()[-1].removeprefix("CMD ")) == [
        "/app/megaphone",
        "serve",
    ]


def test_the_image_does_not_run_as_root() -> None:
    last_stage = DOCKERFILE.rpartition("FROM ")[2]
    assert re.search(r"^USER 10001:10001$", last_stage, re.MULTILINE)
    for name in ("megaphone", "megaphone-proxy"):
        assert pod(name)["securityContext"]["runAsNonRoot"]


def test_the_image_has_the_versions_that_are_tested() -> None:
    tested, deployed, building = (
        dict(re.findall(r"^([a-z0-9-]+)==(\S+)", lock.read_text(), re.MULTILINE))
        for lock in (
            ROOT / "requirements.lock",
            DEPLOY / "requirements.lock",
            DEPLOY / "build-requirements.lock",
        )
    )
    assert deployed.items() | building.items() <= tested.items()
    assert "pytest" not in deployed | building
    assert "mypy" not in deployed
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = project["dependencies"] + project["optional-dependencies"]["redis"]
    own = {"megaphone-api", "megaphone-client"}  # which the image builds
    assert {re.split(r"[^a-z0-9-]", one)[0] for one in needed} - own <= deployed.keys()


def test_the_image_has_the_compiled_wheel_unless_the_pure_one_is_wanted() -> None:
    hooks = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    assert "custom" in hooks["targets"]["wheel"]["hooks"]
    assert "ARG COMPILED=true" in DOCKERFILE
    assert "HATCH_BUILD_HOOK_ENABLE_CUSTOM=$COMPILED /build/bin/python -m hatchling" in DOCKERFILE
    assert "pip install --no-cache-dir --no-deps /dist/*.whl" in DOCKERFILE


def healthy(broker: BrokerProcess) -> int:
    """Run the health check of the image against a broker. Returns: its exit code."""
    [command] = re.findall(r"^HEALTHCHECK .*\\\n\s+CMD (.+)$", DOCKERFILE, re.MULTILINE)
    python, *arguments = json.loads(command.replace("127.0.0.1:3000", broker.url.split("//")[1]))
    assert python == "/app/venv/bin/python"
    done = subprocess.run([sys.executable, *arguments], capture_output=True, timeout=10)
    return done.returncode


def test_the_health_check_tells_whether_a_broker_serves(tmp_path: Path) -> None:
    with broker_process(tmp_path) as broker:
        assert healthy(broker) == 0
    assert healthy(broker) != 0
