"""Each block of code on each page is run by a test, or is checked here: the blocks of `sh`, which
need more machines than a test has, and the commands within sentences."""

import json
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from functools import reduce
from http.client import HTTPConnection
from operator import getitem
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import typer
import yaml

from bench.__main__ import parsed as parsed_for_bench
from megaphone.cli.admin import megactl_app
from megaphone.cli.main import app
from megaphone.config import KEYS, load
from megaphone.testing import Broker
from megaphone_client.sync import Megaphone
from megaphone_operator.cli import parser
from tests.support.build import pure_only
from tests.support.documented import ROOT
from tests.support.kubernetes_programs import ARE_FOR_THIS_MACHINE, run_program

CHART = "deploy/helm/megaphone-operator"
DRAWN = "mermaid"
SHOWN = ("text", "json")
"""What a command prints, or the broker answers. The test that runs the page compares it."""
PAGES = {
    "README.md": {
        "bash": "e2e/test_readme.py",
        "python": "e2e/test_readme.py",
        "js": "browser/test_documents.py",
    },
    "clients/python/README.md": {"python": "client/test_readme.py"},
    "clients/typescript/README.md": {"js": "clients/test_typescript.py"},
    "docs/access.md": {"bash": "e2e/test_access_page.py", "toml": "e2e/test_access_page.py"},
    "docs/browsers.md": {"js": "browser/test_documents.py", "ts": "clients/test_typescript.py"},
    "docs/cli.md": {"bash": "e2e/test_cli_page.py"},
    "docs/delivery.md": {"http": "e2e/test_pages.py"},
    "docs/deploy.md": {
        "nginx": "deploy/test_nginx.py",
        "python": "deploy/test_nginx.py",
        "sh": "e2e/test_pages.py",
    },
    "docs/errors.md": {"json": "e2e/test_pages.py"},
    "docs/grpc.md": {"python": "e2e/test_documents.py"},
    "docs/http.md": {"bash": "e2e/test_http_page.py", "http": "e2e/test_http_page.py"},
    "docs/kubernetes.md": {
        "sh": "e2e/test_pages.py",
        "text": "deploy/test_kubernetes_page.py",
        "yaml": "deploy/test_kubernetes_page.py",
    },
    "docs/kubernetes-migration.md": {"sh": "e2e/test_pages.py"},
    "docs/limits.md": dict.fromkeys(("bash", "http", "toml"), "e2e/test_limits_page.py"),
    "docs/nodes.md": {"toml": "e2e/test_pages.py", "sh": "e2e/test_pages.py"},
    "docs/operating.md": {"bash": "e2e/test_documents.py"},
    "docs/settings.md": {"bash": "e2e/test_documents.py"},
    "docs/store.md": {
        "bash": "e2e/test_store_page.py",
        "nginx": "deploy/test_shared_store.py",
        "sh": "e2e/test_pages.py",
        "text": "e2e/test_store_page.py",
        "toml": "e2e/test_store_page.py",
    },
    "examples/README.md": {"bash": "e2e/test_examples.py"},
    "docs/tls.md": {"bash": "e2e/test_tls_page.py", "toml": "e2e/test_tls_page.py"},
    "gen/README.md": {"bash": "e2e/test_wheel.py", "python": "e2e/test_wheel.py"},
    "operator/README.md": {"sh": "e2e/test_pages.py", "yaml": "operator/test_resource.py"},
    "docs/tracing.md": dict.fromkeys(("bash", "python"), "e2e/test_tracing_page.py"),
    "docs/webhooks.md": {"toml": "e2e/test_webhooks.py", "python": "e2e/test_webhooks.py"},
}
"""The test that runs the blocks of each language on each page that has any."""

FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`]+)`")
COMMAND = re.compile(r"(?:\w+=\S+ )?(?:[./\w]*/)?(?:megaphone|megactl|make|docker|kubectl|helm) \S")
ASSIGNED = re.compile(r"(\w+)=(.*)")


def blocks(page: str) -> list[tuple[str, str]]:
    """Return the language and the text of each block of a page."""
    return [(language, text) for _, language, text in FENCE.findall((ROOT / page).read_text())]


def blocks_of(page: str, language: str) -> list[str]:
    return [text for its, text in blocks(page) if its == language]


def block(page: str, language: str) -> str:
    [found] = blocks_of(page, language)
    return found


def all_pages() -> list[str]:
    return subprocess.check_output(["git", "ls-files", "*.md"], cwd=ROOT, text=True).split()


@pure_only("the source is hidden from these tests")
def test_each_page_with_code_has_a_test_that_runs_it() -> None:
    found = {
        page: languages
        for page in all_pages()
        if (languages := {language for language, _ in blocks(page)} - {DRAWN})
    }
    assert found.keys() == PAGES.keys()
    for page, languages in found.items():
        tests = PAGES[page]
        assert tests.keys() <= languages <= {*tests, *SHOWN}, page
        for test in tests.values():
            assert Path(page).name in (ROOT / "tests" / test).read_text(), (page, test)


# -- Commands, as far as the command line itself judges them


def commands(page: str) -> Iterator[str]:
    """Yield each command of a page that is not run by a test."""
    for language, text in blocks(page):
        if language == "sh":
            yield from text.splitlines()
    for span in SPAN.findall(FENCE.sub("", (ROOT / page).read_text())):
        command = " ".join(span.split())
        if COMMAND.match(command):
            yield command


@pytest.mark.parametrize("page", sorted(page for page in all_pages() if [*commands(page)]))
def test_each_command_is_one_that_exists(page: str) -> None:
    for command in commands(page):
        try:
            check(command)
        except Exception as error:
            raise AssertionError(f"{command}: {error}") from error


def check(command: str) -> None:
    """Check a command as far as one can without running it."""
    if assigned := re.fullmatch(r"export (\w+)=(.*)", command):
        is_the_output_of_a_command(assigned[2])
        assert f"${{{assigned[1]}:?" in (ROOT / "deploy" / "compose.yaml").read_text()
        return
    if written := re.fullmatch(r'echo "(\w+)=(.*)" > (\S+)', command):
        is_a_file_of_kubernetes(written[1], ROOT / written[3])
        return
    words = shlex.split(command)
    while variable := ASSIGNED.fullmatch(words[0]):
        assert variable[1].removeprefix("megaphone_") in KEYS or variable[1].isupper()
        words.pop(0)
    program, *arguments = words
    CHECKS[Path(program).name](arguments)


def is_the_output_of_a_command(text: str) -> None:
    assert subprocess.check_output(["bash", "-c", f"echo -n {text}"])


def is_a_file_of_kubernetes(key: str, file: Path) -> None:
    """Check that Kubernetes gets this file, and that a node gets this key of it."""
    kustomization = yaml.safe_load((file.parent / "kustomization.yaml").read_text())
    [generator] = kustomization["secretGenerator"]
    assert generator["envs"] == [file.name]
    used = f"secretKeyRef: {{ name: {generator['name']}, key: {key} }}"
    assert used in (file.parent / "kubernetes.yaml").read_text()


def is_a_call_of(typer_app: typer.Typer, arguments: list[str]) -> None:
    """Check the arguments of a command as it does itself, and do nothing else."""
    command = typer.main.get_command(typer_app)
    if is_only_named(command, arguments):
        return
    without_effect(command)
    some = {"COMMAND": "write", "N": "1"}
    command.main([some.get(word, word) for word in arguments], standalone_mode=False)


def is_only_named(command: Any, words: list[str]) -> bool:
    """Whether a text only names a command, or an option, without what it needs."""
    for word in words:
        if word not in getattr(command, "commands", {}):
            return any(word in parameter.opts for parameter in command.params) and word == words[-1]
        command = command.commands[word]
    return True


def without_effect(command: Any) -> None:
    for sub in getattr(command, "commands", {}).values():
        without_effect(sub)
    command.callback = lambda **_: None


def is_a_call_of_make(arguments: list[str]) -> None:
    targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    target, *rest = arguments
    assert target in targets
    for variable in rest:
        name, value = variable.split("=", 1)
        assert name == "ARGS"
        if target == "bench":
            parsed_for_bench(shlex.split(value))
        for word in shlex.split(value):
            assert not word.startswith("tests/") or (ROOT / word).exists()


def is_a_call_of_docker(arguments: list[str]) -> None:
    image = (ROOT / "deploy" / "Dockerfile").read_text()
    match arguments:
        case ["compose", "-f", file, "up", "--build"]:
            assert "build:" in (ROOT / file).read_text()
        case ["compose", "-f", file, "-f", more, "up", "--build"]:
            services = [
                yaml.safe_load((ROOT / one).read_text())["services"] for one in (file, more)
            ]
            assert services[1].keys() <= services[0].keys()
        case ["build", "-f", file, "-t", _, "."]:
            assert (ROOT / file).is_file()
        case ["build", "--build-arg", argument]:
            assert f"\nARG {argument.partition('=')[0]}" in image
        case ["exec", "NODE", program, *rest]:
            assert f"{Path(program).name} /app/" in image
            CHECKS[Path(program).name](rest)
        case _:
            pytest.fail(f"docker {' '.join(arguments)} is not known here")


def is_a_call_of_kubectl(arguments: list[str]) -> None:
    has_its_options("kubectl", arguments)
    match arguments:
        case [("apply" | "delete"), "-k", folder]:
            assert (ROOT / folder / "kustomization.yaml").exists()
        case ["patch", "megaphone", _, "--type=merge", patch]:
            assert json.loads(patch.removeprefix("--patch=")).keys() == {"spec"}
        case _:
            assert arguments[0] in (
                "apply",
                "delete",
                "describe",
                "drain",
                "get",
                "logs",
                "port-forward",
                "scale",
                "wait",
            )


def is_a_call_of_helm(arguments: list[str]) -> None:
    has_its_options("helm", arguments)
    values = yaml.safe_load((ROOT / CHART / "values.yaml").read_text())
    for argument in arguments:
        assert not argument.startswith("deploy/") or argument == CHART
        if set_to := re.fullmatch(r"--set=([\w.]+)=.*", argument):
            assert reduce(getitem, set_to[1].split("."), values) is not None


def has_its_options(program: str, arguments: list[str]) -> None:
    """Check that a command of kubectl or helm has the options with which it is called."""
    if not ARE_FOR_THIS_MACHINE:
        return
    command = arguments[0]
    of_all_commands = "options" if program == "kubectl" else "--help"
    listed = run_program(program, command, "--help") + run_program(program, of_all_commands)
    for word in arguments[1:]:
        if word.startswith("-"):
            assert re.search(rf"(^|[\s,]){re.escape(word.partition('=')[0])}\b", listed), word


def is_a_call_of_the_operator(arguments: list[str]) -> None:
    # It looks whether files exist, and not every machine has those of the page.
    parser().parse_args([__file__ if word.startswith("~/") else word for word in arguments])


CHECKS: dict[str, Callable[[list[str]], None]] = {
    "megaphone": lambda arguments: is_a_call_of(app, arguments),
    "megactl": lambda arguments: is_a_call_of(megactl_app, arguments),
    "make": is_a_call_of_make,
    "docker": is_a_call_of_docker,
    "kubectl": is_a_call_of_kubectl,
    "megaphone-operator": is_a_call_of_the_operator,
    "helm": is_a_call_of_helm,
}


# -- Blocks of pages that have no test of their own


@pytest.fixture
def connection(megaphone_broker: Broker) -> Iterator[HTTPConnection]:
    connection = HTTPConnection(urlsplit(megaphone_broker.url).netloc)
    yield connection
    connection.close()


def test_the_acknowledgement_gets_the_answer_that_the_page_gives(
    megaphone_broker: Broker, connection: HTTPConnection
) -> None:
    page = (ROOT / "docs" / "delivery.md").read_text()
    [documented] = re.findall(r'`(\{"status": "OK", "acknowledged": 3\})`', page)
    with Megaphone.from_url(megaphone_broker.url) as megaphone:
        channel = megaphone.create()
        *_, last = [megaphone.write(channel.producer, "s", number) for number in range(3)]
    connection.request("GET", f"/read/{channel.consumer}?ack=explicit&limit=3")
    assert last in connection.getresponse().read().decode()
    head, body = block("docs/delivery.md", "http").split("\n\n")
    request, *headers = head.splitlines()
    method, path = request.replace("{consumerAddress}", channel.consumer).split()
    connection.request(
        method,
        path,
        json.dumps(json.loads(body) | {"eid": last}),
        dict(line.split(": ") for line in headers),
    )
    assert json.load(connection.getresponse()) == json.loads(documented)


def test_the_error_is_what_a_read_of_no_channel_gets(
    megaphone_broker: Broker, connection: HTTPConnection
) -> None:
    with Megaphone.from_url(megaphone_broker.url) as megaphone:
        agent, random, number = megaphone.create().consumer.split(".")
    connection.request("GET", f"/read/{agent}.{random[::-1]}.{number}")
    documented = json.loads(block("docs/errors.md", "json"))
    assert json.load(connection.getresponse()) == documented


def test_the_secret_of_nodes_is_a_setting(tmp_path: Path) -> None:
    text, _ = blocks_of("docs/nodes.md", "toml")
    [command] = re.findall(r"# (openssl .*)", text)
    secret = subprocess.check_output(shlex.split(command), text=True).strip()
    (tmp_path / "megaphone.toml").write_text(text.replace("…", secret))
    assert load(tmp_path, {}).settings.nodes.secret == secret


def test_the_certificates_of_nodes_are_settings(tmp_path: Path) -> None:
    _, text = blocks_of("docs/nodes.md", "toml")
    (tmp_path / "megaphone.toml").write_text(text)
    nodes = load(tmp_path, {}).settings.nodes
    assert (nodes.address, nodes.ca) == ("0.0.0.0:3002", "authority.pem")


@pure_only("the source is hidden from these tests")
def test_pictures_are_small_and_shown() -> None:
    shown = {
        picture
        for page in all_pages()
        for picture in re.findall(r"\]\((?:docs/)?pictures/(\S+)\)", (ROOT / page).read_text())
    }
    assert shown == {picture.name for picture in (ROOT / "docs/pictures").iterdir()}
    for picture in (ROOT / "docs/pictures").iterdir():
        assert picture.stat().st_size < 150_000
