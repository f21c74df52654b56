"""The drivers that the suite knows: how each is started, and which protocol its client speaks."""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.support.chromium import CHROMIUM


@dataclass(frozen=True, slots=True)
class Kind:
    """A driver together with a protocol."""

    name: str
    command: tuple[str, ...]
    scheme: str
    """`http` or `grpc`: how the URLs begin that its clients open."""
    lacks: str | None = None
    """Why it cannot run here."""
    may_write: bool = True
    """Whether the broker lets its clients write. A page of another origin may only read."""

    def __str__(self) -> str:
        return self.name


def python_driver(name: str) -> tuple[str, ...]:
    return sys.executable, "-W", "always", "-m", f"tests.clients.drivers.{name}"


def lack_of_node() -> str | None:
    if shutil.which("node") is None:
        return "needs Node 20"
    return None if BUILT.exists() else "needs the built TypeScript client: make client-ts"


def lack_of_chromium() -> str | None:
    if CHROMIUM is None:
        return "needs Chromium: apt-get install chromium"
    return None if BUILT.exists() else "needs the built TypeScript client: make client-ts"


def lack_of(runtime: Path) -> str | None:
    if not runtime.exists():
        return f"needs {runtime.name}: make runtimes"
    return None if BUILT.exists() else "needs the built TypeScript client: make client-ts"


BUILT = Path(__file__).parents[3] / "clients/typescript/dist/index.js"
HERE = Path(__file__).parent
RUNTIMES = HERE.parent / "runtimes/node_modules/.bin"
DENO_PATH, BUN_PATH = RUNTIMES / "deno", RUNTIMES / "bun"
NODE_DRIVER = str(HERE / "node.js")

HTTP = Kind("http", python_driver("asynchronous"), "http")
GRPC = Kind("grpc", python_driver("asynchronous"), "grpc")
SYNC = Kind("sync", python_driver("synchronous"), "http")
SYNC_GRPC = Kind("sync-grpc", python_driver("synchronous"), "grpc")
NODE = Kind(
    "node",
    ("node", NODE_DRIVER),
    "http",
    lacks=lack_of_node(),
)
POLLS = Kind("polls", ("node", NODE_DRIVER, "polls"), "http", lacks=lack_of_node())
"""The client as it reads under React Native."""
DENO = Kind(
    "deno", (str(DENO_PATH), "run", "--allow-all", NODE_DRIVER), "http", lacks=lack_of(DENO_PATH)
)
BUN = Kind("bun", (str(BUN_PATH), NODE_DRIVER), "http", lacks=lack_of(BUN_PATH))
PAGE = Kind(
    "chromium", python_driver("chromium"), "http", lacks=lack_of_chromium(), may_write=False
)
WORKER = Kind(
    "worker",
    (*python_driver("chromium"), "worker"),
    "http",
    lacks=lack_of_chromium(),
    may_write=False,
)

KINDS = (HTTP, GRPC, SYNC, NODE)
"""Those that pass every test. The others join the long form of the seeded runs, and `PAGE` the
tests of reading, because that is what pages do. `POLLS` joins only these: a poll that arrives in
small pieces looks like a silent one, since the client sees nothing of it before its end."""
