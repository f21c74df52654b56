"""Write the generated pages, or check them.

python -m docs.generate           write them
python -m docs.generate --check   fail, and name the pages that are not up to date
"""

import sys
from pathlib import Path

from docs.generate import errors, metrics, protos, settings

DOCS = Path(__file__).parents[1]
PAGES = {
    "errors.md": errors.page,
    "grpc.md": protos.page,
    "metrics.md": metrics.page,
    "settings.md": settings.page,
}


def main() -> None:
    match sys.argv[1:]:
        case []:
            for name, page in PAGES.items():
                (DOCS / name).write_text(page(), encoding="utf-8")
        case ["--check"]:
            stale = [name for name, page in PAGES.items() if present(name) != page()]
            if stale:
                names = "\n".join(f"  docs/{name}" for name in stale)
                sys.exit(f"These pages are not what the code says; run `make docs`:\n{names}")
        case _:
            sys.exit(__doc__)


def present(name: str) -> str:
    file = DOCS / name
    return file.read_text(encoding="utf-8") if file.exists() else ""


if __name__ == "__main__":
    main()
