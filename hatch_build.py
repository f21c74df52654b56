"""Make the README of the distribution from README.md.

A package index shows neither files of the repository nor diagrams. So links to files become
absolute, and diagrams are left out.
"""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

FENCE = re.compile(r"^(```.*?^```\n)", re.MULTILINE | re.DOTALL)
FILE_LINK = re.compile(r"\[([^\]]+)\]\((?!https?:|#)([^)]+)\)")


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
        return f"[{link[1]}]({files_url}/{link[2]})" if files_url else link[1]

    parts = []
    for part in FENCE.split(text):
        if not part.startswith("```"):
            parts.append(FILE_LINK.sub(outside_of_repository, part))
        elif not part.startswith("```mermaid"):
            parts.append(part)
    return "".join(parts)
