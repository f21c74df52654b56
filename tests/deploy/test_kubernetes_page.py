"""What docs/kubernetes.md shows is what the resource definition and kustomize accept."""

import re
import shutil
from pathlib import Path
from typing import Any

import jsonschema_rs
import yaml

from megaphone import __version__
from tests.manifests import DEPLOY
from tests.support.documented import ROOT
from tests.support.kubernetes_programs import needs_kubernetes_programs, run_program

PAGE = (ROOT / "docs" / "kubernetes.md").read_text()
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ROW = re.compile(r"^\| (`[^|]*`) \|", re.MULTILINE)
FIELD = re.compile(r"`([A-Za-z.]+)`")
[VERSION] = yaml.safe_load((DEPLOY / "operator" / "crd.yaml").read_text())["spec"]["versions"]
SCHEMA = VERSION["schema"]["openAPIV3Schema"]


def blocks(language: str) -> list[str]:
    return [text for its, text in BLOCK.findall(PAGE) if its == language]


def section(title: str) -> str:
    [found] = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    return str(found)


def strict(schema: Any) -> Any:
    """Return a schema that allows no field that it does not name."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: strict(one) for name, one in schema.items()}
    if "properties" in made and not made.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", made["type"] == "object" and False)
    return made


def fields(schema: Any, prefix: str = "") -> set[str]:
    """Return the paths of all fields of a schema that may be set."""
    found = set()
    for name, one in schema.get("properties", {}).items():
        found |= {prefix + name} | fields(one, f"{prefix}{name}.")
    return found


def test_the_cluster_of_the_page_is_one_that_kubernetes_accepts() -> None:
    _, cluster, _ = blocks("yaml")
    schema = strict(SCHEMA)
    schema["properties"]["metadata"] = {"type": "object", "required": ["name"]}
    jsonschema_rs.validate(schema, yaml.safe_load(cluster))


@needs_kubernetes_programs
def test_the_kustomization_of_the_page_names_another_image(tmp_path: Path) -> None:
    kustomization, *_ = blocks("yaml")
    shutil.copytree(DEPLOY / "operator", tmp_path / "deploy" / "operator")
    (tmp_path / "kustomization.yaml").write_text(kustomization)
    assert "image: registry.example/megaphone-operator:" in run_program(
        "kubectl", "kustomize", tmp_path
    )


def test_the_images_of_the_pages_have_the_version_of_the_rest() -> None:
    migration = (ROOT / "docs" / "kubernetes-migration.md").read_text()
    versions = re.findall(r"(?<!/)megaphone(?:-operator)?:([0-9.]+[0-9])", PAGE + migration)
    *numbers, patch = __version__.split(".")
    upgrade = ".".join([*numbers, str(int(patch) + 1)])  # to which the page upgrades a cluster
    assert set(versions) == {__version__, upgrade}


def test_the_columns_of_the_page_are_those_of_the_resource() -> None:
    columns = VERSION["additionalPrinterColumns"]
    names = ["NAME", *(one["name"].upper() for one in columns if not one.get("priority"))]
    more = [one["name"].upper() for one in columns if one.get("priority")]
    short, wide = (re.split(" {2,}", text.splitlines()[0]) for text in blocks("text"))
    assert short == names
    assert wide == names + more


def test_the_page_has_every_reason_and_every_event() -> None:
    folder = ROOT / "operator" / "megaphone_operator" / "plan"
    code = (folder / "status.py").read_text() + (folder / "events.py").read_text()
    reasons = re.findall(r'Condition\("\w+", (?:True|False), "(\w+)"', code)
    events = re.findall(r'(?:_normal\(|"Warning", )"(\w+)"', code)
    named = set(re.findall(r"`([A-Z][A-Za-z]+)`", section("The status")))
    assert named - {"Available", "Progressing", "Degraded"} == {*reasons, *events}


def test_the_table_has_every_field_of_the_spec() -> None:
    spec = SCHEMA["properties"]["spec"]
    named = {field for row in ROW.findall(section("The spec")) for field in FIELD.findall(row)}
    assert named <= fields(spec)
    assert {field.partition(".")[0] for field in named} == spec["properties"].keys()
