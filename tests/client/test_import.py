"""Importing the client is quick: what it needs to connect is imported when it connects."""

import subprocess
import sys

LATER = {"aiohttp", "google", "grpc", "megaphone", "msgspec", "yarl"}


def test_importing_the_client_imports_no_library() -> None:
    code = "import sys, megaphone_client, megaphone_client.sync; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not LATER & {name.partition(".")[0] for name in done.stdout.split()}
