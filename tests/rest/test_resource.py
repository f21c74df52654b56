"""What a node says of where clients get tokens (RFC 9728), and where it says so."""

from typing import Any

import pytest

from megaphone.model import Action
from megaphone.settings import Auth, Issuer
from tests.support.faces import HttpFace
from tests.support.issuer import AUDIENCE, SECRET

PATH = "/.well-known/oauth-protected-resource"
ISSUER = "https://id.example.com/realm"
MAIN = Issuer(issuer=ISSUER, audience=AUDIENCE, secret=SECRET)
OWN = Issuer(issuer="own", audience=AUDIENCE, secret=SECRET)
AUTH = Auth(require=(Action.CREATE, Action.METRICS), issuers={"main": MAIN, "own": OWN})


async def got(http: HttpFace, path: str) -> tuple[int, Any]:
    async with http.session.get(http.url(path), headers={"Host": "evil.example"}) as response:
        return response.status, await response.json()


async def challenge(http: HttpFace, method: str, path: str, proof: str = "") -> str | None:
    headers = {"Authorization": proof} if proof else {}
    async with http.session.request(method, http.url(path), headers=headers) as response:
        await response.read()
        return response.headers.get("WWW-Authenticate")


@pytest.mark.settings(auth=AUTH, public_url="https://push.example.com")
async def test_the_metadata_name_the_issuers(http: HttpFace) -> None:
    status, found = await got(http, PATH)
    assert status == 200
    assert found == {
        "resource": "https://push.example.com",
        "authorization_servers": [ISSUER],
        "bearer_methods_supported": ["header"],
        "scopes_supported": [f"megaphone:{action.value}" for action in Action],
        "authorization_details_types_supported": ["urn:megaphone:authorization"],
    }


@pytest.mark.settings(auth=AUTH, public_url="https://push.example.com")
async def test_challenges_name_the_metadata(http: HttpFace) -> None:
    named = f'resource_metadata="https://push.example.com{PATH}"'
    for method, path in (("POST", "/create"), ("GET", "/metrics")):
        assert await challenge(http, method, path) == f'Bearer realm="megaphone", {named}'
    wrong = await challenge(http, "POST", "/create", "Bearer x")
    assert wrong == f'Bearer realm="megaphone", error="invalid_token", {named}'


@pytest.mark.settings(auth=AUTH, public_url="https://push.example.com/mega/")
async def test_the_path_of_the_url_comes_last(http: HttpFace) -> None:
    for path in (PATH, f"{PATH}/mega"):
        status, found = await got(http, path)
        assert (status, found["resource"]) == (200, "https://push.example.com/mega/")
    assert (await got(http, f"{PATH}/other"))[0] == 404
    found = await challenge(http, "POST", "/create")
    assert found is not None
    assert found.endswith(f'resource_metadata="https://push.example.com{PATH}/mega"')


@pytest.mark.settings(auth=AUTH)
async def test_without_a_public_url_nothing_is_said(http: HttpFace) -> None:
    assert (await got(http, PATH))[0] == 404
    assert await challenge(http, "POST", "/create") == 'Bearer realm="megaphone"'


@pytest.mark.settings(
    auth=Auth(require=(Action.CREATE,), issuers={"own": OWN}), public_url="https://push.example.com"
)
async def test_without_an_issuer_that_has_a_url_nothing_is_said(http: HttpFace) -> None:
    assert (await got(http, PATH))[0] == 404
    assert await challenge(http, "POST", "/create") == 'Bearer realm="megaphone"'
