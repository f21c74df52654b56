"""Gets the public keys of an issuer by HTTP.

The settings give the URL of the keys, or the issuer does so by OpenID Connect Discovery; a token
never does. Time and size are limited, so an issuer that is silent, slow or wrong costs little. The
texts of errors contain no URL, because a URL may contain a secret.
"""

import asyncio
from collections.abc import Mapping
from typing import Final

import aiohttp
import msgspec
from yarl import URL

from megaphone import __version__
from megaphone.access.keys import KeySet, MalformedKeys, keys_of_set, members_of
from megaphone.settings import Issuer, KeysUrl

FETCH_S: Final = 4.0
"""How long it may take to get the keys, with all that is necessary for it. Calls wait for that,
and a client that waits for five seconds still learns why its call failed."""
MAX_BYTES: Final = 1_048_576
"""How many bytes an answer may have."""
DISCOVERY: Final = "/.well-known/openid-configuration"
HEADERS: Final = {
    "Accept": "application/json",
    "Accept-Encoding": "identity",  # so that a small answer cannot become a large one
    "User-Agent": f"megaphone/{__version__}",
}


class FetchFailed(Exception):
    """The keys of an issuer could not be fetched. The text says why, for the log."""


async def fetch_keys(settings: Issuer, within_s: float = FETCH_S) -> KeySet:
    """Return the keys that an issuer publishes now. Raises: FetchFailed."""
    try:
        async with asyncio.timeout(within_s), new_session() as session:
            url = settings.jwks_url or await discover(session, settings)
            return keys_of_set(await get_object(session, url))
    except TimeoutError:
        raise FetchFailed(f"no whole answer within {within_s:g} s") from None
    except MalformedKeys as error:
        raise FetchFailed(f"the answer has no usable keys: {error}") from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise FetchFailed(f"the request failed: {type(error).__name__}") from None


def new_session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(force_close=True),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers=HEADERS,
        auto_decompress=False,
    )


async def discover(session: aiohttp.ClientSession, settings: Issuer) -> str:
    """Return the URL of the keys, as the issuer says it (OpenID Connect Discovery 1.0)."""
    found = await get_object(session, settings.issuer.removesuffix("/") + DISCOVERY)
    if found.get("issuer") != settings.issuer:
        raise FetchFailed("the discovery document is that of another issuer")
    try:
        url = msgspec.convert(found.get("jwks_uri"), KeysUrl)
    except msgspec.ValidationError:
        raise FetchFailed("the discovery document has no https URL as jwks_uri") from None
    if settings.issuer.startswith("https:") and not url.startswith("https:"):
        raise FetchFailed("the discovery document has no https URL as jwks_uri")
    return url


async def get_object(session: aiohttp.ClientSession, url: str) -> Mapping[str, object]:
    """Return the JSON object at a URL."""
    async with session.get(URL(url, encoded=True), allow_redirects=False) as answer:
        if answer.status != 200:
            raise FetchFailed(f"the status of the answer is {answer.status}, not 200")
        content = bytearray()
        async for piece in answer.content.iter_any():
            content += piece
            if len(content) > MAX_BYTES:
                raise FetchFailed(f"the answer is longer than {MAX_BYTES} bytes")
    return members_of(bytes(content))
