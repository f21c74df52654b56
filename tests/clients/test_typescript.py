"""The TypeScript client knows what the broker has."""

import json
import re
from pathlib import Path

import megaphone
from megaphone_client.errors import CLASSES

PACKAGE = Path(__file__).parents[2] / "clients/typescript"
ROW = re.compile(r'^  ([A-Z_]+): "(\w+)",$', re.MULTILINE)


def test_each_code_has_the_name_of_its_class_in_python() -> None:
    names = dict(ROW.findall((PACKAGE / "src/errors.ts").read_text()))
    assert {code: names.get(code) for code in CLASSES} == {
        code: one.__name__ for code, one in CLASSES.items()
    }


def test_the_package_has_the_version_of_the_broker() -> None:
    assert json.loads((PACKAGE / "package.json").read_text())["version"] == megaphone.__version__
