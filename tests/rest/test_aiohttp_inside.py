"""Only `megaphone.rest.connection` uses the inside of aiohttp, so an upgrade needs one review."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import megaphone

ROOT = Path(megaphone.__file__).parent
ALLOWED = "rest/connection/"
DOCUMENTED = {"aiohttp", "aiohttp.abc", "aiohttp.web", "aiohttp.hdrs"}
INNER_ATTRIBUTES = {"writer", "transport", "protocol", "task"}
"""Attributes of a request that the documentation of aiohttp does not mention, or calls internal."""


def uses_of_the_inside(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (n.name for n in names if is_inner_module(n.name))
            case ast.ImportFrom(module=str(module)) if is_inner_module(module):
                yield module
            case ast.ClassDef(bases=bases):
                yield from (
                    f"class {node.name}({ast.unparse(base)})"
                    for base in bases
                    if ast.unparse(base).startswith(("web.", "aiohttp."))
                )
            case ast.Attribute(value=ast.Name(id="request" | "server"), attr=attribute):
                if attribute.startswith("_") or attribute in INNER_ATTRIBUTES:
                    yield ast.unparse(node)
            case _:
                pass


def is_inner_module(name: str) -> bool:
    return name.split(".")[0] == "aiohttp" and name not in DOCUMENTED


def uses_by_file() -> dict[str, list[str]]:
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        if uses := list(uses_of_the_inside(ast.parse(path.read_text(encoding="utf-8")))):
            found[path.relative_to(ROOT).as_posix()] = uses
    return found


def test_the_inside_of_aiohttp_is_used_in_one_package() -> None:
    elsewhere = {
        name: uses for name, uses in uses_by_file().items() if not name.startswith(ALLOWED)
    }
    assert elsewhere == {}


@pytest.mark.parametrize("module", ["answers", "guest"])
def test_each_use_in_that_package_would_be_seen(module: str) -> None:
    assert uses_by_file()[f"{ALLOWED}{module}.py"]
