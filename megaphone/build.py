"""How the code that runs was built."""

from importlib.machinery import ExtensionFileLoader
from typing import Literal

from megaphone import model


def build_kind() -> Literal["compiled", "pure"]:
    """Return `compiled` if this installation has the modules that mypyc compiles as machine code.

    One of them speaks for all, because a wheel has either all of them compiled or none.
    """
    loader = model.__spec__.loader if model.__spec__ else None
    return "compiled" if isinstance(loader, ExtensionFileLoader) else "pure"
