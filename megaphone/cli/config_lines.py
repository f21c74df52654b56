"""The settings of a node, as the lines of a megaphone.toml."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import fields
from enum import Enum
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from megaphone.config import DEFAULT, KEYS, VARIABLE, Config
from megaphone.settings import (
    Auth,
    ClientCertificates,
    Issuer,
    Nodes,
    Settings,
    TenantLimits,
    Tls,
    Token,
    Webhook,
)

HIDDEN = "…"


def kinds_of_sources(loaded: Config) -> Counter[str]:
    """Return how many settings each kind of source has set."""
    return Counter(kind_of(loaded.sources[key]) for key in KEYS)


def lines_of(loaded: Config, secrets: bool) -> Iterator[str]:
    """Return every setting and its source. Without `secrets`, those are comments."""
    for setting in fields(Settings):
        value = getattr(loaded.settings, setting.name)
        source = loaded.sources[setting.name]
        if isinstance(value, Nodes | Tls | Auth):
            continue
        if not isinstance(value, Mapping):
            yield line_of(setting.name, value, source, secrets)
        elif source == DEFAULT:  # because the agents get other names at the next start
            yield line(setting.name, None, source)
    if (source := loaded.sources["agent"]) != DEFAULT:
        yield f"\n[agent.virtual]  # {source}"
        for name, mode in loaded.settings.agent.items():
            yield f"{name} = {toml(mode)}"
    yield from table("tls", loaded.settings.tls, loaded.sources, secrets)
    yield from table("nodes", loaded.settings.nodes, loaded.sources, secrets)
    yield from table("auth", loaded.settings.auth, loaded.sources, secrets)
    for name, token in loaded.settings.auth.tokens.items():
        yield from table(f"auth.tokens.{name}", token, loaded.sources, secrets)
    for name, issuer in loaded.settings.auth.issuers.items():
        yield from table(f"auth.issuers.{name}", issuer, loaded.sources, secrets)
    for name, group in loaded.settings.auth.certificates.items():
        yield from table(f"auth.certificates.{name}", group, loaded.sources, secrets)
    for name, webhook in loaded.settings.webhooks.items():
        yield from table(f"webhooks.{name}", webhook, loaded.sources, secrets)
    for name, limits in loaded.settings.tenants.items():
        yield from table(f"tenants.{name}", limits, loaded.sources, secrets)


def table(
    path: str,
    members: Nodes | Tls | Webhook | Auth | Token | Issuer | ClientCertificates | TenantLimits,
    sources: Mapping[str, str],
    secrets: bool,
) -> Iterator[str]:
    yield f"\n[{path}]"
    for member in fields(members):
        value, source = getattr(members, member.name), sources[f"{path}.{member.name}"]
        if not isinstance(value, Mapping):  # which has tables of its own
            yield line_of(member.name, value, source, secrets)


def line_of(key: str, value: Any, source: str, secrets: bool) -> str:
    shown = value if secrets else without_secrets(key, value)
    if shown == value:
        return line(key, value, source)
    comment = f'# {key} = "{shown}"'
    return f"{comment:<43} # {source}; --secrets shows it"


def without_secrets(key: str, value: Any) -> Any:
    if key in ("secret", "previous_secret"):
        return value and HIDDEN
    if key not in ("endpoint", "store") or value is None:
        return value
    parts = urlsplit(value)
    if "@" not in parts.netloc and not parts.query:
        return value
    netloc = re.sub(".*@", f"{HIDDEN}@", parts.netloc)
    return urlunsplit(parts._replace(netloc=netloc, query=parts.query and HIDDEN))


def kind_of(source: str) -> str:
    if source == DEFAULT:
        return "defaults"
    return "the environment" if source.startswith(VARIABLE) else source


def line(key: str, value: Any, source: str) -> str:
    if value is None:  # TOML has no null
        return f"{f'# {key} is not set':<43} # {source}"
    return f"{f'{key} = {toml(value)}':<43} # {source}"


def toml(value: Any) -> str:
    return json.dumps(value.value if isinstance(value, Enum) else value, ensure_ascii=False)
