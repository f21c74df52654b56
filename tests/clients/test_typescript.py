"""The TypeScript client knows what the broker has, and its page shows what works."""

import asyncio
import json
import re
import subprocess
from pathlib import Path

import pytest

import megaphone
from megaphone.app import App
from megaphone.wire.errors import TABLE
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
async def test_each_code_means_what_it_means_in_python() -> None:
    """Its name is that of the class, and another try may heal it or not: whether the code comes
    with the status of an answer, or without one in an answer for many. Left out are the codes that
    have no class of their own there, because no client gets them."""
    named = {code: one for code, one in CLASSES.items() if one is not MegaphoneError}
    status_of = {row.error.code: row.http_status for row in TABLE}
    script = f"""
        import {{ MegaphoneError }} from "megaphone-client";
        import {{ errorOf, named }} from "./dist/codes.js";
        const told = ({{ name, mayHeal }}) => [name, mayHeal];
        const alone = {json.dumps(list(named))}.map((code) => [code, ...told(errorOf(code, ""))]);
        const answers = Object.entries({json.dumps(status_of)}).map(([code, status]) =>
          [code, ...told(named(new MegaphoneError(code, "", status)))]);
        console.log(JSON.stringify([...alone, ...answers]));
    """
    out, errors = await (await node(script)).communicate()
    assert not errors.decode()
    for code, name, may_heal in json.loads(out):
        if code in named:
            assert (code, name, may_heal) == (code, named[code].__name__, named[code].may_heal)


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
