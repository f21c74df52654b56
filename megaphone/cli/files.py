"""Where the commands keep what users give names to, and how such a file is replaced."""

import os
import tempfile
from pathlib import Path

ONLY_FOR_THE_USER = 0o600


def configuration_file(name: str) -> Path:
    """Return the path of a file in the user's configuration."""
    return folder("XDG_CONFIG_HOME", ".config") / name


def state_file(name: str) -> Path:
    """Return the path of a file that commands write, and users do not edit."""
    return folder("XDG_STATE_HOME", ".local/state") / name


def folder(variable: str, default: str) -> Path:
    home = os.environ.get(variable)
    return (Path(home) if home else Path.home() / default) / "megaphone"


def check_replaceable(path: Path) -> None:
    """Raises: OSError, if `replace_file` cannot even begin."""
    descriptor, temporary = begun_file(path)
    os.close(descriptor)
    Path(temporary).unlink()


def begun_file(path: Path) -> tuple[int, str]:
    """Return a new file that may take the place of another one: its descriptor and its path."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")


def replace_file(path: Path, content: str) -> None:
    """Replace a file in one step. Nobody but the user may read it. Raises: OSError."""
    descriptor, temporary = begun_file(path)
    try:
        with os.fdopen(descriptor, "w") as file:
            os.fchmod(file.fileno(), ONLY_FOR_THE_USER)
            file.write(content)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink()
        raise
