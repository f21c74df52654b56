"""Generate the Python package of the schema: messages, services and their type stubs.

The `.proto` files are where the tools of every language expect them (`proto/megaphone/…`). Only for
Python they are compiled under the virtual path `megaphone_api/…`, so that the generated package
cannot collide with the package `megaphone`.

The schema imports two files of Google. They are beside it in `proto/google/api`, as the locked
version of googleapis-common-protos has them, so that `protoc -Iproto` and `buf build` need no more.

    generate.py DIR           write DIR/megaphone_api and proto/google/api
    generate.py --check DIR   fail and name the files that are not up to date
    generate.py --image FILE  write the schema as one descriptor set
"""

import filecmp
import shutil
import sys
import tempfile
from importlib import metadata, resources
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).parent
PACKAGE = "megaphone_api"
OTHERS = ROOT / "google" / "api"
"""The files of Google that the schema imports."""
ORIGINALS = Path(str(metadata.distribution("googleapis-common-protos").locate_file("google/api")))
INCLUDES = [f"-I{ROOT}", f"-I{resources.files('grpc_tools') / '_proto'}"]


def schema_files() -> list[Path]:
    return sorted(ROOT.glob("megaphone/**/*.proto"))


def run_protoc(*arguments: str) -> None:
    status = protoc.main(["protoc", *INCLUDES, *arguments])
    if status:
        sys.exit(f"protoc failed with status {status}")


def generate(directory: Path) -> None:
    target = directory / PACKAGE
    if target.exists():
        shutil.rmtree(target)
    target.mkdir(parents=True)
    virtual_names = [str(Path(PACKAGE) / f.relative_to(ROOT / "megaphone")) for f in schema_files()]
    run_protoc(
        f"-I{PACKAGE}={ROOT / 'megaphone'}",
        f"--plugin={Path(sys.executable).with_name('protoc-gen-mypy')}",
        f"--plugin={Path(sys.executable).with_name('protoc-gen-mypy_grpc')}",
        f"--python_out={directory}",
        f"--mypy_out=quiet:{directory}",
        f"--grpc_python_out={directory}",
        f"--mypy_grpc_out=quiet:{directory}",
        *virtual_names,
    )
    for folder in {target, *(f.parent for f in target.rglob("*.py"))}:
        (folder / "__init__.py").touch()
    (target / "py.typed").touch()


def copy_others() -> None:
    for file in OTHERS.glob("*.proto"):
        shutil.copyfile(ORIGINALS / file.name, file)


def check(directory: Path) -> None:
    with tempfile.TemporaryDirectory() as fresh:
        generate(Path(fresh))
        stale = [
            directory / PACKAGE / name
            for name in differences(Path(fresh) / PACKAGE, directory / PACKAGE)
        ]
    stale += [
        file
        for file in sorted(OTHERS.glob("*.proto"))
        if not filecmp.cmp(ORIGINALS / file.name, file, shallow=False)
    ]
    if stale:
        names = "\n".join(f"  {file}" for file in stale)
        sys.exit(f"Generated code is not what proto/ generates; run `make proto`:\n{names}")


def differences(fresh: Path, present: Path) -> list[Path]:
    def files(folder: Path) -> set[Path]:
        found = (f for f in folder.rglob("*") if f.is_file() and "__pycache__" not in f.parts)
        return {f.relative_to(folder) for f in found}

    wanted, found = files(fresh), files(present)
    changed = {f for f in wanted & found if not filecmp.cmp(fresh / f, present / f, shallow=False)}
    return sorted((wanted ^ found) | changed)


def write_image(file: Path) -> None:
    run_protoc(
        "--include_imports",
        "--include_source_info",
        f"--descriptor_set_out={file}",
        *(str(f) for f in schema_files()),
    )


def main() -> None:
    match sys.argv[1:]:
        case ["--check", directory]:
            check(Path(directory))
        case ["--image", file]:
            write_image(Path(file))
        case [directory]:
            copy_others()
            generate(Path(directory))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
