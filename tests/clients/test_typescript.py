"""The TypeScript client knows what the broker has, and its page shows what works."""

import asyncio
import json
import re
import subprocess
from pathlib import Path

import pytest

import megaphone
from megaphone.app import App
from megaphone_client import MegaphoneError
from megaphone_client.errors import CLASSES
from tests.clients.drivers.kinds import NODE
from tests.support.faces import HttpFace

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "clients/typescript"
BLOCK = re.compile(r"```[jt]s\n(.*?)\n```", re.DOTALL)
README = (PACKAGE / "README.md").read_text()

needs_node = pytest.mark.skipif(NODE.lacks is not None, reason=NODE.lacks or "")


def test_the_package_has_the_version_of_the_broker() -> None:
    assert json.loads((PACKAGE / "package.json").read_text())["version"] == megaphone.__version__


async def node(script: str) -> asyncio.subprocess.Process:
    """Run a module that may import the package by its name."""
    return await asyncio.create_subprocess_exec(
        *("node", "--input-type=module", "--eval", script),
        cwd=PACKAGE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@needs_node
async def test_each_code_has_the_name_of_its_class_in_python() -> None:
    """Except those that have none of their own there, because no client gets them."""
    named = {code: one.__name__ for code, one in CLASSES.items() if one is not MegaphoneError}
    script = "import { MegaphoneError } from 'megaphone-client';"
    script += (
        f"const names = {json.dumps(list(named))}.map((one) => new MegaphoneError(one, '').name);"
    )
    script += "console.log(JSON.stringify(names));"
    out, _ = await (await node(script)).communicate()
    assert dict(zip(named, json.loads(out), strict=True)) == named


@needs_node
async def test_the_first_lines_of_the_page_show_events(app: App, http: HttpFace) -> None:
    made = await http.create()
    await http.write(made.producer, "greetings", b'"hello"')
    lines = BLOCK.findall(README)[0]
    url = f"http://127.0.0.1:{app.http_port}"
    script = f"const consumer = {made.consumer!r};" + lines.replace("https://example.com", url)
    process = await node(script)
    assert process.stdout is not None
    assert await process.stdout.readline() == b"greetings hello\n"
    process.kill()
    await process.wait()


@needs_node
async def test_a_back_end_writes_as_the_page_says(app: App) -> None:
    [lines] = [one for one in BLOCK.findall(README) if "mp.create" in one]
    begin = "import { Megaphone } from 'megaphone-client';"
    begin += f"const mp = new Megaphone('http://127.0.0.1:{app.http_port}');"
    end = "\nconst { [producer]: exists } = await mp.exists([producer]);"
    end += "console.log(JSON.stringify([typeof id, failures, exists]));"
    out, errors = await (await node(begin + lines + end)).communicate()
    assert (json.loads(out), errors) == (["string", [], True], b"")


@needs_node
async def test_every_block_is_a_module() -> None:
    blocks = BLOCK.findall(README)
    blocks += re.findall(r"```ts\n(.*?)\n```", (ROOT / "docs/browsers.md").read_text(), re.DOTALL)
    checks = json.dumps([re.sub(r"(?m)^import .*$", "", block) for block in blocks])
    script = (
        f"for (const one of {checks}) Object.getPrototypeOf(async () => {{}}).constructor(one);"
    )
    _, errors = await (await node(script)).communicate()
    assert not errors.decode()
