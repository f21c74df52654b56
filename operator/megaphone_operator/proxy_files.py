"""Reads the files of nginx that are a part of this package."""

from importlib.resources import files

from megaphone_operator.plan.proxies import FILES


def proxy_files() -> dict[str, str]:
    """Return the files of `deploy/nginx` that proxies need, by their names."""
    folder = files("megaphone_operator") / "nginx"
    return {name: (folder / name).read_text(encoding="utf-8") for name in FILES}
