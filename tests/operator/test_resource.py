"""The resource: what users wrote for the former operator is valid, and the schema and the types of
the operator say the same."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from megaphone_operator.plan.resource import BadResource, Resources, Spec, parse_resource
from tests.e2e.test_pages import block
from tests.operator.world import resource_body
from tests.support.documented import ROOT

CRD = yaml.safe_load((ROOT / "deploy" / "operator" / "crd.yaml").read_text())
VERSION: dict[str, Any] = CRD["spec"]["versions"][0]
SCHEMA: dict[str, Any] = VERSION["schema"]["openAPIV3Schema"]["properties"]
FORMER = yaml.safe_load("""
metadata: { name: megaphone-demo, namespace: default, uid: some, generation: 1 }
spec:
  replicas: 2
  image: dghila/megaphone:0.8.9
  virtualAgentsPerNode: 3
  resources:
    limits: { cpu: 50m, memory: 150Mi }
    requests: { cpu: 20m, memory: 50Mi }
""")


def test_a_resource_of_the_former_operator_means_what_it_meant() -> None:
    spec = parse_resource(FORMER).spec
    assert (spec.replicas, spec.image, spec.virtual_agents_per_node) == (
        2,
        FORMER["spec"]["image"],
        3,
    )
    assert spec.resources is not None
    assert spec.resources.manifest() == FORMER["spec"]["resources"]
    assert spec.agent_services


def test_null_is_as_good_as_nothing() -> None:
    body = resource_body(resources={"limits": None, "requests": {"cpu": None, "memory": "1Gi"}})
    resources = parse_resource(body).spec.resources
    assert resources is not None
    assert resources.manifest() == {"requests": {"memory": "1Gi"}}
    assert parse_resource(resource_body(resources=None)).spec.resources is None


def test_a_wrong_spec_is_refused_with_the_name_of_the_field() -> None:
    with pytest.raises(BadResource, match=r"Expected `int`, got `str` - at `\$.replicas`"):
        parse_resource(resource_body(replicas="two"))


def test_the_example_of_the_readme_is_a_resource() -> None:
    body = yaml.safe_load(block("operator/README.md", "yaml"))
    assert body["apiVersion"] == f"{CRD['spec']['group']}/{VERSION['name']}"
    assert body["kind"] == CRD["spec"]["names"]["kind"]
    body["metadata"] |= {"namespace": "default", "uid": "some"}
    assert parse_resource(body).spec.replicas == 2


def properties(struct: Any) -> dict[str, Any]:
    return {field.encode_name: field.type for field in msgspec.structs.fields(struct)}


def compare(schema: dict[str, Any], struct: Any) -> None:
    """Check that both have the same fields and the same defaults, all the way down."""
    assert schema.keys() == properties(struct).keys()
    for field in msgspec.structs.fields(struct):
        part = schema[field.encode_name]
        if "default" in part:
            assert part["default"] == field.default, field.encode_name
        inner = next(
            (one for one in (field.type, *getattr(field.type, "__args__", ())) if is_struct(one)),
            None,
        )
        if inner is not None and inner is not Resources:
            compare(part["properties"], inner)


def is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def test_the_schema_has_the_fields_and_defaults_of_the_operator() -> None:
    compare(SCHEMA["spec"]["properties"], Spec)


def test_only_the_fields_of_the_former_operator_are_required() -> None:
    assert set(SCHEMA["spec"]["required"]) == {"image", "replicas"}
    former = set(FORMER["spec"])
    assert former <= SCHEMA["spec"]["properties"].keys()


def test_kubectl_can_scale_and_shows_progress() -> None:
    scale = VERSION["subresources"]["scale"]
    assert scale["specReplicasPath"] == ".spec.replicas"
    for path in (scale["statusReplicasPath"], scale["labelSelectorPath"]):
        assert path.removeprefix(".status.") in SCHEMA["status"]["properties"]
    for column in VERSION["additionalPrinterColumns"]:
        place, name = column["jsonPath"].partition("[")[0].split(".")[1:]
        assert place == "metadata" or name in SCHEMA[place]["properties"]


def test_the_resource_keeps_its_name() -> None:
    names = CRD["spec"]["names"]
    assert (
        CRD["metadata"]["name"]
        == f"{names['plural']}.{CRD['spec']['group']}"
        == "megaphones.d71.dev"
    )
    assert Path(ROOT / "deploy" / "operator" / "crd.yaml").read_text().count("\n---") == 0
