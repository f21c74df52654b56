"""The two steps of a build that are our own: the README of the distribution, and compiled modules.

A package index shows neither files of the repository nor diagrams. So links to files become
absolute, and diagrams are left out.
"""

import os
import re
from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

if TYPE_CHECKING:
    from setuptools import Extension

FENCE = re.compile(r"^(```.*?^```\n)", re.MULTILINE | re.DOTALL)
FILE_LINK = re.compile(r"(!?)\[([^\]]+)\]\((?!https?:|#)([^)]+)\)")
OPTIMIZATION = "MEGAPHONE_OPTIMIZATION"
"""The variable with the level of optimization. For a test 0 is enough, which is built soonest."""


class Readme(MetadataHookInterface):
    """Sets `readme` in the metadata of the project.

    The option `files-url` is the address under which the files of the repository can be read. If it
    is not set, a link to a file becomes plain text.
    """

    def update(self, metadata: dict[str, Any]) -> None:
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        text = readme_for_index(text, self.config.get("files-url", ""))
        metadata["readme"] = {"content-type": "text/markdown", "text": text}


def readme_for_index(text: str, files_url: str) -> str:
    """Return a README that needs no other file. Code blocks stay as they are."""

    def outside_of_repository(link: re.Match[str]) -> str:
        image, text, file = link.groups()
        if files_url:
            return f"{image}[{text}]({files_url}/{file})"
        return "" if image else text

    parts = []
    for part in FENCE.split(text):
        if not part.startswith("```"):
            parts.append(FILE_LINK.sub(outside_of_repository, part))
        elif not part.startswith("```mermaid"):
            parts.append(part)
    return "".join(parts)


class Compiled(BuildHookInterface[Any]):
    """Adds the compiled form of each of `modules` to the wheel, which then fits one platform.

    The source of a module stays in the wheel, where tracebacks find its lines. An editable
    installation is never compiled.
    """

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        self._built = TemporaryDirectory()
        with chdir(self.root):
            objects = compiled(self.config["modules"], Path(self._built.name))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        build_data["force_include"] |= objects

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if version != "editable":
            self._built.cleanup()


def compiled(modules: list[str], folder: Path) -> dict[str, str]:
    """Compile modules of the working directory. Returns: the path in the wheel for each object."""
    from setuptools import Distribution

    extensions = translated(modules, folder / "c")
    build = Distribution({"ext_modules": extensions}).get_command_obj("build_ext")
    build.build_lib = str(folder / "lib")
    build.build_temp = str(folder / "temp")
    build.parallel = os.cpu_count()
    build.ensure_finalized()
    build.run()
    objects = (path for path in Path(build.build_lib).rglob("*") if path.is_file())
    return {str(path): str(path.relative_to(build.build_lib)) for path in sorted(objects)}


def translated(modules: list[str], folder: Path) -> "list[Extension]":
    """Translate modules to C. Exits, and says why, if mypyc refuses one of them."""
    from mypyc.build import mypycify

    extensions = mypycify(
        ["--config-file=pyproject.toml", *modules],
        group_name="megaphone",
        opt_level=os.environ.get(OPTIMIZATION, "3"),
        debug_level="0",
        target_dir=str(folder),
    )
    for extension in extensions:
        # Nobody reads warnings of generated code. Without optimization, gcc looks for them for
        # longer than it does everything else.
        extension.extra_compile_args += ["-Wno-all", "-w"]
        extension.extra_link_args.append("-s")
    return extensions
