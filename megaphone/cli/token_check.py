"""`megaphone token check`: what a token says, and whether a broker with these settings accepts it.

Nothing of the token itself is printed but what its claims say, so that the output can be shown to
others.
"""

import asyncio
import json
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from megaphone.cli.config import ConfigOption, load_or_exit
from megaphone.cli.exits import Exit, leave

if TYPE_CHECKING:
    from megaphone.core.access import Grant
    from megaphone.settings import Settings

JWT_DOTS = 2
EVERY_STREAM = ("*",)
FROM_INPUT = "-"
CLAIMS = ("iss", "aud", "sub", "client_id", "exp", "nbf", "scope", "authorization_details")
HEADERS = ("alg", "kid", "typ")
TIMES = ("exp", "nbf")


def check(
    token: Annotated[
        str,
        typer.Argument(
            metavar="TOKEN",
            help="The token, or - to read it from standard input, where no list of processes"
            " shows it.",
            show_default=False,
        ),
    ],
    config: ConfigOption = None,
) -> None:
    """Say what a token is worth for a broker with these settings, or why it would be refused.

    This gets the keys of issuers as the broker does. It exits with 1 if the token would be refused.
    """
    settings = load_or_exit(config).settings
    text = (sys.stdin.read() if token == FROM_INPUT else token).strip()
    if not text:
        leave(Exit.WRONG_USAGE, "there is no token")
    from megaphone.access.issuers import UnusableKey
    from megaphone.errors import KeysUnavailable, TokenExpired, Unauthenticated

    try:
        lines = asyncio.run(worth(text, settings))
    except Unauthenticated as error:
        leave(Exit.FAILED, f"the token would be refused: {getattr(error, 'reason', error)}")
    except TokenExpired:
        leave(Exit.FAILED, "the token would be refused: it has expired")
    except (KeysUnavailable, UnusableKey) as error:
        leave(Exit.FAILED, f"the token cannot be checked: {error}")
    for line in lines:
        typer.echo(line)


async def worth(token: str, settings: "Settings") -> list[str]:
    """Return what a token allows, as lines.

    Raises: Unauthenticated; TokenExpired; KeysUnavailable; UnusableKey.
    """
    from megaphone.access.issuers import issuers_of
    from megaphone.access.jwt import verify

    if token.count(".") != JWT_DOTS:
        return worth_of_static(token, settings)
    for line in what_it_says(token):
        typer.echo(line)
    verified = await verify(token, issuers_of(settings))
    name = verified.issuer.name
    return [
        f"It is valid here: auth.issuers.{name} answers for it, for {verified.left_s:.0f} s more.",
        *rights(verified.tenant, verified.grants),
    ]


def worth_of_static(token: str, settings: "Settings") -> list[str]:
    from megaphone.access.ports import InvalidToken
    from megaphone.access.tokens import by_digest, digest_of, grant_of

    found = by_digest(settings.auth.tokens).get(digest_of(token))
    if found is None:
        raise InvalidToken("it is no JWT, and auth.tokens has no token with its hash")
    name, static = found
    return [
        f"It is valid here: it is auth.tokens.{name}.",
        *rights(static.tenant, [grant_of(static)]),
    ]


def rights(tenant: str, grants: Sequence["Grant"]) -> Iterator[str]:
    yield f"tenant       {tenant}"
    if not grants:
        yield "allows       nothing"
    for grant in grants:
        actions = ", ".join(sorted(action.value for action in grant.actions))
        streams = (
            "" if grant.streams == ("*",) else f" on {', '.join(grant.streams) or 'no stream'}"
        )
        yield f"allows       {printable(actions + streams)}"


def what_it_says(token: str) -> Iterator[str]:
    """Yield what the header and the claims of a JWT say, whether that is true or not.

    Raises: InvalidToken, if it is none.
    """
    from megaphone.access.jwt import parse, payload_of

    signed, header = parse(token)
    payload = payload_of(signed)
    for name in HEADERS:
        if name in header:
            yield f"{name:<12} {printable(header[name])}"
    for name in CLAIMS:
        if name in payload:
            value = payload[name]
            time = f"  ({date_of(value)})" if name in TIMES else ""
            yield f"{name:<12} {printable(value)}{time}"


def printable(value: Any) -> str:
    """Return a value of a token in one line, without what a terminal would obey."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text)


def date_of(value: Any) -> str:
    try:
        return f"{datetime.fromtimestamp(value, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (TypeError, ValueError, OverflowError, OSError):
        return "no time"
