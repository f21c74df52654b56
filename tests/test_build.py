"""A compiled wheel has all listed modules compiled, and any other build has none."""

import ast
import importlib
import tomllib
from collections.abc import Iterator
from importlib.machinery import ExtensionFileLoader
from pathlib import Path

import pytest

from megaphone.build import build_kind
from tests.support.build import pure_only

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
HOOKS = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["hooks"]
FILES = HOOKS["custom"]["modules"]
MODULES = [name.removesuffix(".py").replace("/", ".") for name in FILES]
WAITS = (ast.Await, ast.AsyncFor, ast.AsyncWith, ast.Yield, ast.YieldFrom)


@pytest.mark.parametrize("name", MODULES)
def test_all_listed_modules_are_built_alike(name: str) -> None:
    spec = importlib.import_module(name).__spec__
    assert spec is not None
    is_compiled = isinstance(spec.loader, ExtensionFileLoader)
    assert is_compiled == (build_kind() == "compiled")


@pure_only("the source is hidden from these tests")
@pytest.mark.parametrize("file", FILES)
def test_no_compiled_module_waits_while_it_handles_an_exception(file: str) -> None:
    """See `megaphone.core.tasks`."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.AsyncWith)]
    assert not [*waits_in_handlers(tree)]


def waits_in_handlers(tree: ast.AST) -> Iterator[int]:
    """Yield the line of each wait in `except` or `finally`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Try | ast.TryStar):
            for handling in (*node.handlers, *node.finalbody):
                for inner in ast.walk(handling):
                    if isinstance(inner, WAITS):
                        yield inner.lineno
