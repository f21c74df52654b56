"""A compiled wheel has all listed modules compiled, and any other build has none."""

import importlib
import tomllib
from importlib.machinery import ExtensionFileLoader
from pathlib import Path

import pytest

from megaphone.build import build_kind

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
HOOKS = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["hooks"]
MODULES = [name.removesuffix(".py").replace("/", ".") for name in HOOKS["custom"]["modules"]]


@pytest.mark.parametrize("name", MODULES)
def test_all_listed_modules_are_built_alike(name: str) -> None:
    spec = importlib.import_module(name).__spec__
    assert spec is not None
    is_compiled = isinstance(spec.loader, ExtensionFileLoader)
    assert is_compiled == (build_kind() == "compiled")
