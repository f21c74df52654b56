"""Importing the client is quick: each part of it is imported when it is first used."""

import subprocess
import sys

import pytest

import megaphone_client

TO_CONNECT = {"aiohttp", "google", "grpc", "megaphone", "msgspec", "yarl"}


def imported_by(code: str) -> set[str]:
    """Return the modules that a new interpreter has after it ran some code."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {code}; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


def packages_of(modules: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules}


def test_importing_the_client_imports_only_what_a_program_uses_of_it() -> None:
    modules = imported_by("import megaphone_client")
    assert {name for name in modules if name.startswith("megaphone")} == {"megaphone_client"}
    assert not {"asyncio", "ssl", *TO_CONNECT} & packages_of(modules)


def test_both_clients_import_no_library_before_they_connect() -> None:
    modules = imported_by("from megaphone_client import Megaphone, sync; Megaphone.from_url()")
    assert not TO_CONNECT & packages_of(modules)


def test_each_public_name_is_found_and_no_other() -> None:
    assert dir(megaphone_client) == megaphone_client.__all__
    for name in megaphone_client.__all__:
        assert getattr(megaphone_client, name).__module__.startswith("megaphone_client.")
    wrong = "Megafone"
    with pytest.raises(AttributeError, match="no attribute 'Megafone'"):
        getattr(megaphone_client, wrong)
