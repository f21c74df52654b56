"""Kustomize and Helm install the same operator, and each value of the chart does what it says."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from megaphone import __version__
from megaphone_operator.cli import parser
from tests.manifests import CHART, DEPLOY, MADE, NAME, operator_yaml, rendered
from tests.support.kubernetes_programs import needs_kubernetes_programs, run_program

pytestmark = needs_kubernetes_programs

OPERATOR = DEPLOY / "operator"
OPERATOR_README = DEPLOY.parent / "operator" / "README.md"
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
KEEP = "helm.sh/resource-policy"

Objects = dict[tuple[str, str], Any]


def objects(text: str) -> Objects:
    """Return the objects in a text by their kinds and names."""
    documents = [one for one in yaml.safe_load_all(text) if one]
    found = {(one["kind"], one["metadata"]["name"]): one for one in documents}
    assert len(found) == len(documents)
    return found


def chart(*options: str) -> Objects:
    return objects(rendered(*options))


def pod(found: Objects) -> Any:
    return found["Deployment", NAME]["spec"]["template"]["spec"]


def test_the_file_for_kustomize_is_made_of_the_chart() -> None:
    assert MADE.read_text() == operator_yaml(), "run `python -m tests.manifests`"


def test_kustomize_and_helm_install_the_same() -> None:
    by_kustomize = objects(run_program("kubectl", "kustomize", OPERATOR))
    by_helm = chart()
    namespace = by_kustomize.pop(("Namespace", NAME))  # which Helm makes by --create-namespace
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    [definition] = [one for (kind, _), one in by_helm.items() if kind == "CustomResourceDefinition"]
    assert definition["metadata"].pop("annotations") == {KEEP: "keep"}
    assert by_helm == by_kustomize


def test_the_chart_has_no_faults() -> None:
    run_program("helm", "lint", "--strict", "--quiet", CHART)


def test_the_chart_has_the_version_of_the_rest() -> None:
    described = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert described["version"] == described["appVersion"] == __version__
    assert pod(chart())["containers"][0]["image"] == f"megaphone-operator:{__version__}"


def test_a_packed_chart_brings_the_same(tmp_path: Path) -> None:
    run_program("helm", "package", CHART, f"--destination={tmp_path}")
    [packed] = tmp_path.glob("*.tgz")
    assert objects(rendered(chart=packed)) == chart()


def test_every_value_reaches_the_operator(tmp_path: Path) -> None:
    values = {
        "image": {"repository": "registry.example/op", "tag": "7", "pullPolicy": "Always"},
        "imagePullSecrets": [{"name": "pull"}],
        "replicas": 1,
        "logLevel": "debug",
        "resolver": "10.96.0.10",
        "clusterDomain": "cluster.example",
        "rolesForUsers": False,
        "crd": {"install": False},
        "resources": {"limits": {"cpu": "1"}},
        "podAnnotations": {"a": "b"},
        "nodeSelector": {"disk": "fast"},
        "tolerations": [{"operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "priorityClassName": "high",
        "ownNamespaceOnly": True,
    }
    assert values.keys() == VALUES.keys()
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(values))
    found = chart(f"--values={tmp_path / 'values.yaml'}")
    made = pod(found)
    [container] = made["containers"]
    assert container["image"] == "registry.example/op:7"
    assert container["imagePullPolicy"] == "Always"
    assert container["args"] == [
        "--log-level=debug",
        f"--namespace={NAME}",
        "--resolver=10.96.0.10",
        "--cluster-domain=cluster.example",
    ]
    options = parser().parse_args(container["args"])
    assert (options.log_level, options.namespace) == ("debug", NAME)
    assert (options.resolver, options.cluster_domain) == ("10.96.0.10", "cluster.example")
    assert container["resources"] == values["resources"] | VALUES["resources"] | {
        "limits": VALUES["resources"]["limits"] | {"cpu": "1"}
    }
    for name in ("nodeSelector", "tolerations", "affinity", "priorityClassName"):
        assert made[name] == values[name]
    assert found["Deployment", NAME]["spec"]["replicas"] == 1
    template = found["Deployment", NAME]["spec"]["template"]
    assert template["metadata"]["annotations"] == {"a": "b"}
    assert found["ServiceAccount", NAME]["imagePullSecrets"] == [{"name": "pull"}]


def test_an_operator_for_one_namespace_has_no_rights_outside_of_it() -> None:
    found = chart(
        "--set=ownNamespaceOnly=true", "--set=rolesForUsers=false", "--set=crd.install=false"
    )
    assert {one["metadata"]["namespace"] for one in found.values()} == {NAME}
    assert not {kind for kind, _ in found if kind.startswith("Cluster")}
    assert rules(found["Role", NAME]) == {
        rule
        for rule in rules(chart()["ClusterRole", NAME])
        if rule[1] != "customresourcedefinitions"
    }


def rules(role: Any) -> set[tuple[str, str, str]]:
    """Return each right of a role: the group, the resource and the verb."""
    return {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_the_rights_are_those_that_the_operator_says_it_uses() -> None:
    everywhere, in_its_namespace = re.findall(
        r"\| group \| resource .*\n\|.*\n((?:\|.*\n)+)", OPERATOR_README.read_text()
    )
    found = chart()
    assert rules(found["ClusterRole", NAME]) == rights(everywhere)
    assert rules(found["Role", f"{NAME}-lease"]) == rights(in_its_namespace)


def rights(table: str) -> set[tuple[str, str, str]]:
    """Return the rights in a table of README.md."""
    rows = [[cell.strip(" `") for cell in row.split("|")[1:4]] for row in table.splitlines()]
    return {
        ("" if group == "core" else group, resource, verb)
        for group, resource, verbs in rows
        for verb in verbs.split(", ")
    }


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("replicas=-1", "minimum: got -1, want 0"),
        ("replcas=3", "additional properties 'replcas' not allowed"),
        ("logLevel=loud", "value must be one of 'debug', 'info', 'warning', 'error'"),
        ("image.pullPolicy=Sometimes", "value must be one of 'Always', 'IfNotPresent', 'Never'"),
        ("ownNamespaceOnly=maybe", "got string, want boolean"),
    ],
)
def test_a_wrong_value_is_refused_with_what_is_allowed(value: str, says: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(says)):
        rendered(f"--set={value}")


def test_the_operator_may_read_no_secret_and_run_nothing_in_a_pod() -> None:
    for found in chart().values():
        if found["kind"] in ("ClusterRole", "Role"):
            for _, resource, verb in rules(found):
                assert "*" not in (resource, verb)
                assert resource not in ("pods/exec", "pods/portforward", "pods/attach")
                assert resource != "secrets" or verb == "create"


def test_the_operator_fits_into_a_restricted_namespace() -> None:
    made = pod(chart())
    assert made["securityContext"]["runAsNonRoot"]
    assert made["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    [container] = made["containers"]
    assert container["securityContext"] == {
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }


def test_a_kustomization_of_ones_own_changes_image_and_name_server(tmp_path: Path) -> None:
    deploy = tmp_path / "deploy"
    for folder in ("nginx", "."):
        for file in (DEPLOY / folder).iterdir():
            if file.is_file():
                target = deploy / folder / file.name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.read_bytes())
    (deploy / "node-secret.env").write_text(f"secret={'s' * 43}=\n")
    (tmp_path / "kustomization.yaml").write_text(
        "resources: [deploy]\n"
        "images: [{name: megaphone, newName: registry.example/megaphone, newTag: '7'}]\n"
        "configMapGenerator:\n"
        "  - name: megaphone-nginx\n"
        "    behavior: merge\n"
        "    literals: ['resolver.conf=resolver 10.96.0.10 valid=1s;']\n"
    )
    found = objects(run_program("kubectl", "kustomize", tmp_path))
    [(_, name)] = [one for one in found if one[0] == "ConfigMap"]
    configuration = found["ConfigMap", name]["data"]
    assert configuration["resolver.conf"] == "resolver 10.96.0.10 valid=1s;"
    assert configuration["megaphone.conf"] == (DEPLOY / "nginx" / "megaphone.conf").read_text()
    nodes = found["Deployment", "megaphone"]["spec"]["template"]["spec"]
    assert nodes["containers"][0]["image"] == "registry.example/megaphone:7"
    proxies = found["Deployment", "megaphone-proxy"]["spec"]["template"]["spec"]
    assert {"name": "configuration", "configMap": {"name": name}} in proxies["volumes"]
