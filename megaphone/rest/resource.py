"""Says where clients get tokens for this broker (RFC 9728, OAuth 2.0 Protected Resource Metadata).

GET /.well-known/oauth-protected-resource

Clients know the broker by `public_url`, never by the `Host` that a request names. A path in that
URL comes after the well-known one, as the RFC has it.
"""

import json
from collections.abc import Callable, Sequence
from typing import Final
from urllib.parse import urlsplit, urlunsplit

from aiohttp import hdrs, web

from megaphone.model import Action
from megaphone.rest.connection.answers import json_answer
from megaphone.wire.errors import BEARER, SCOPE_PREFIX

PATH: Final = "/.well-known/oauth-protected-resource"
DETAIL_TYPE: Final = "urn:megaphone:authorization"
CACHE_FOR_S: Final = 300


class ResourceMetadata:
    """What this broker says of itself as a resource that tokens protect."""

    def __init__(self, public_url: str, issuers: Callable[[], Sequence[str]]) -> None:
        """`issuers` returns the URLs of those whose tokens are valid now."""
        self._resource = public_url
        self._issuers = issuers
        parts = urlsplit(public_url)
        path = parts.path.rstrip("/")
        self._paths = tuple(dict.fromkeys((PATH, PATH + path)))
        self._url = urlunsplit((parts.scheme, parts.netloc, PATH + path, "", ""))

    def routes(self) -> list[web.RouteDef]:
        """Return the routes. There are two if `public_url` has a path, because a proxy may take
        that away."""
        return [web.get(path, self.show) for path in self._paths]

    async def show(self, request: web.Request) -> web.Response:
        if not (issuers := self._issuers()):
            raise web.HTTPNotFound
        content = {
            "resource": self._resource,
            "authorization_servers": issuers,
            "bearer_methods_supported": ["header"],
            "scopes_supported": [SCOPE_PREFIX + action.value for action in Action],
            "authorization_details_types_supported": [DETAIL_TYPE],
        }
        headers = {"Cache-Control": f"public, max-age={CACHE_FOR_S}"}
        return json_answer(json.dumps(content).encode(), headers=headers)

    def name_in_challenges(self, app: web.Application) -> None:
        """Let answers that ask for a token say where the metadata is."""
        named = f', resource_metadata="{self._url}"'

        async def name(request: web.Request, response: web.StreamResponse) -> None:
            challenge = response.headers.get(hdrs.WWW_AUTHENTICATE, "")
            if challenge.startswith(BEARER) and self._issuers():
                response.headers[hdrs.WWW_AUTHENTICATE] = challenge + named

        app.on_response_prepare.append(name)
