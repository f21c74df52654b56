"""What stands for an image: this machine's files with a few more, and a command."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.compat import original
from tests.operator_e2e.programs import program

ROOT = Path(__file__).parents[3]
SOURCE = "/app/src"
"""Where a container has this repository."""
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PYTHON = f"{SOURCE}/{Path(sys.prefix).relative_to(ROOT)}/bin/python"
PACKAGES = (".", "gen", "clients/python", "operator")
"""Where this repository has packages that are installed in place."""
ORIGINAL_TAGS = ("0.8.", "0.9.", "0.10.")
"""The tags of the image of the Rust broker, which `make compat` builds."""
MISSING = "missing"
"""The tag of images that cannot be pulled."""


class NoSuchImage(Exception):
    """The image cannot be pulled."""


@dataclass(frozen=True, slots=True)
class Image:
    """What a container is, unless its pod says otherwise."""

    command: tuple[str, ...]
    """The program with its arguments, all of which the arguments of a pod replace."""
    entrypoint: tuple[str, ...] = ()
    """A program that the arguments of a pod do not replace; the command has its usual ones."""
    directory: str = "/"
    user: int = 0
    stop_signal: str = "SIGTERM"
    environment: Mapping[str, str] = field(default_factory=dict)
    scripts: Mapping[str, str] = field(default_factory=dict)
    """Executable files, by path."""


def script(entry: str) -> str:
    """Return a program that runs a command of this repository. It needs no shell, because a shell
    drops variables whose names have dots."""
    module, _, function = entry.partition(":")
    return f"#!{PYTHON} -P\nfrom {module} import {function}\n{function}()\n"


IN_PLACE = {"PYTHONPATH": ":".join(f"{SOURCE}/{one}" for one in PACKAGES)}

BROKER = Image(
    command=("/app/megaphone", "serve"),
    directory="/app",
    user=10001,
    environment={
        **IN_PLACE,
        "megaphone_address": "0.0.0.0:3000",
        "megaphone_grpc_address": "0.0.0.0:3001",
        "SSL_CERT_FILE": "/dev/null",  # which takes a tenth of a start
    },
    scripts={
        "/app/megaphone": script("megaphone.cli.main:main"),
        "/app/megactl": script("megaphone.cli.admin:main"),
    },
)
OPERATOR = Image(
    command=(),
    entrypoint=("/app/megaphone-operator",),
    directory="/app",
    user=10001,
    environment=IN_PLACE,
    scripts={"/app/megaphone-operator": script("megaphone_operator.cli:main")},
)
NGINX = Image(
    command=(program("nginx") or "nginx", "-g", "daemon off;"),
    stop_signal="SIGQUIT",
)
ORIGINAL_BROKER = Image(
    command=(f"{SOURCE}/{original.BROKER.relative_to(ROOT)}",),
    directory="/app",
    environment={"megaphone_address": "0.0.0.0:3000", "megaphone_grpc_address": "0.0.0.0:3001"},
)
REDIS = Image(
    command=(program("redis-server") or "redis-server", "--save", "", "--protected-mode", "no"),
)
IMAGES = {"megaphone": BROKER, "megaphone-operator": OPERATOR, "nginx": NGINX, "redis": REDIS}


def image_of(reference: str) -> Image:
    """Return the image that a reference names; all tags of a name but a few are the same.

    Raises: NoSuchImage.
    """
    name, _, tag = reference.partition("@")[0].rpartition("/")[2].partition(":")
    if name not in IMAGES or tag == MISSING:
        raise NoSuchImage(reference)
    if name == "megaphone" and tag.startswith(ORIGINAL_TAGS):
        return ORIGINAL_BROKER
    return IMAGES[name]
