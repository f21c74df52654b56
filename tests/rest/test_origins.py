"""What pages of other origins may do, as a browser asks for them; `tests/browser` uses a real one.

Each request goes once through the lane and once through aiohttp.
"""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from megaphone.app import App, running
from megaphone.core.access import Action
from megaphone.settings import Auth
from tests.support.connections import answer_of, connected, metric
from tests.support.faces import Created, http_face
from tests.support.raw_http import Head, receive_head, request_of
from tests.support.settings import fast_settings

OWN, LISTED, FOREIGN = "http://push.example:3000", "https://shop.example", "https://evil.example"
HOST = "push.example:3000"
ORIGIN, SITE = "Origin", "Sec-Fetch-Site"
LANES = {True: "lane", False: "aiohttp"}
Headers = dict[str, str]
FORMS: list[Headers] = [
    {},
    {"Content-Type": "text/plain"},
    {"Content-Type": "application/x-www-form-urlencoded"},
    {"Content-Type": "multipart/form-data; boundary=x"},
]
"""What a page can send without a preflight."""
BY_NOBODY_ELSE: list[Headers] = [
    {},
    {ORIGIN: OWN},
    {ORIGIN: OWN.upper()},
    {ORIGIN: LISTED},
    {SITE: "same-origin"},
    {SITE: "none"},
    {SITE: "same-origin", ORIGIN: "https://before.a.proxy.example"},
    {SITE: "cross-site", ORIGIN: LISTED},
]
BY_FOREIGN_PAGES: list[Headers] = [
    {ORIGIN: FOREIGN},
    {ORIGIN: "null"},
    {ORIGIN: ""},
    {ORIGIN: "http://push.example:3001"},
    {ORIGIN: "http://push.example"},
    {ORIGIN: "http://a.push.example:3000"},
    {ORIGIN: "http://push.example:3000.evil.example"},
    {ORIGIN: "file://push.example:3000"},
    {ORIGIN: f"{LISTED}, {FOREIGN}"},
    {ORIGIN: f"{LISTED}:443"},
    {SITE: "cross-site"},
    {SITE: "same-site", ORIGIN: OWN},
    {SITE: "cross-site", ORIGIN: OWN},
    {SITE: "nonsense"},
]


@pytest_asyncio.fixture(
    scope="module", params=[True, False], ids=["lane", "aiohttp"], loop_scope="module"
)
async def app(request: pytest.FixtureRequest) -> AsyncIterator[App]:
    settings = fast_settings(
        cors_allow_origin=(LISTED, "https://other.example"), http_lane=request.param
    )
    async with running(settings) as app:
        yield app


pytestmark = pytest.mark.asyncio(loop_scope="module")


def request(method: str, path: str, headers: Headers, body: bytes = b"", host: str = HOST) -> bytes:
    made = request_of(method, path, body, headers)
    return made.replace(b"Host: megaphone", b"Host: " + host.encode())


async def ask(
    app: App, method: str, path: str, headers: Headers, body: bytes = b"", host: str = HOST
) -> Head:
    async with connected(app) as [connection]:
        await connection.send(request(method, path, headers, body, host))
        return await receive_head(connection)


@pytest.mark.parametrize("page", BY_FOREIGN_PAGES)
async def test_a_page_of_another_origin_creates_no_channel(app: App, page: Headers) -> None:
    before = await metric(app, "megaphone_channel_created")
    async with connected(app) as [connection]:
        for form in FORMS:
            head, body = await answer_of(connection, request("POST", "/create", form | page))
            assert head.status == 403
            assert b'"code":"PERMISSION_DENIED"' in body
            assert b"cors_allow_origin" in body
            assert b"evil" not in body
    assert await metric(app, "megaphone_channel_created") == before


@pytest.mark.parametrize("page", BY_NOBODY_ELSE)
async def test_programs_and_pages_of_the_own_and_of_listed_origins_create(
    app: App, page: Headers
) -> None:
    async with connected(app) as [connection]:
        for form in FORMS:
            head, _ = await answer_of(connection, request("POST", "/create", form | page))
            assert head.status == 200


@pytest.mark.parametrize("port", [("http", ":80"), ("https", ":443")], ids=str)
async def test_the_port_of_the_scheme_need_not_be_named(app: App, port: tuple[str, str]) -> None:
    scheme, number = port
    for host in ("push.example", f"push.example{number}"):
        headers = {ORIGIN: f"{scheme}://push.example"}
        assert (await ask(app, "POST", "/create", headers, host=host)).status == 200


async def test_what_is_refused_leaves_the_connection_usable(app: App) -> None:
    async with connected(app) as [connection]:
        refused, _ = await answer_of(connection, request("POST", "/create", {ORIGIN: FOREIGN}))
        created, _ = await answer_of(connection, request("POST", "/create", {}))
    assert (refused.status, created.status) == (403, 200)


@pytest_asyncio.fixture(loop_scope="module")
async def channel(app: App) -> AsyncIterator[Created]:
    async with http_face(app) as http:
        yield await http.create()


@pytest.mark.parametrize("form", FORMS)
async def test_no_other_call_with_an_effect_is_possible_without_a_preflight(
    app: App, channel: Created, form: Headers
) -> None:
    accepted = await metric(app, "megaphone_messages_received")
    for path in (
        f"/write/{channel.producer}/s",
        "/write-batch",
        f"/ack/{channel.consumer}",
        "/read",
        "/channelsExists",
    ):
        assert (await ask(app, "POST", path, form | {ORIGIN: FOREIGN}, b"1")).status == 415
    assert await metric(app, "megaphone_messages_received") == accepted


@pytest.mark.parametrize("method", ["POST", "DELETE"])
@pytest.mark.parametrize("path", ["/create", "/write/a/s", "/write-batch", "/channelsExists"])
async def test_a_preflight_of_what_services_do_is_refused(app: App, method: str, path: str) -> None:
    headers = {ORIGIN: LISTED, "Access-Control-Request-Method": method}
    head = await ask(app, "OPTIONS", path, headers)
    assert head.status == 405
    assert "access-control-allow-origin" not in head.headers


@pytest.mark.parametrize("path", ["/read/a", "/read", "/ack/a"])
async def test_a_preflight_of_a_reader_needs_no_token(app: App, path: str) -> None:
    head = await asked_by(app, "OPTIONS", path, LISTED)
    assert head.status == 204
    allowed = head.headers["access-control-allow-headers"].split(", ")
    assert set(allowed) == {
        "Authorization",
        "Content-Type",
        "Idempotency-Key",
        "Last-Event-ID",
        "Megaphone-Agent",
    }
    assert head.headers["access-control-allow-origin"] == LISTED


async def asked_by(app: App, method: str, path: str, origin: str, **more: str) -> Head:
    head = await ask(app, method, path, {ORIGIN: origin} | more)
    assert "access-control-allow-credentials" not in head.headers
    return head


async def test_each_listed_origin_sees_answers_to_readers_and_no_other_does(
    app: App, channel: Created
) -> None:
    for path in (f"/read/{channel.consumer}?wait_ms=0", f"/read/{'a' * 9}?wait_ms=0"):
        for origin in (LISTED, "https://other.example", FOREIGN, "null"):
            async with connected(app) as [connection]:
                await connection.send(request("GET", path, {ORIGIN: origin}))
                head = await receive_head(connection)
            is_listed = origin not in (FOREIGN, "null")
            named = origin if is_listed else None
            assert head.headers.get("access-control-allow-origin") == named
            assert head.headers["vary"] == "Origin"
            exposed = head.headers.get("access-control-expose-headers", "")
            assert ("WWW-Authenticate" in exposed) is is_listed
            assert "access-control-allow-credentials" not in head.headers


async def test_where_a_token_is_needed_a_page_asks_without_it_and_sees_why_it_is_refused() -> None:
    changes = {"auth": Auth(require=(Action.READ,)), "cors_allow_origin": (LISTED,)}
    async with running(fast_settings(**changes)) as app:
        assert (await asked_by(app, "OPTIONS", "/read/a", LISTED)).status == 204
        head = await asked_by(app, "GET", f"/read/node.{'a' * 50}.1", LISTED)
    assert head.status == 401
    assert head.headers["access-control-allow-origin"] == LISTED
    assert head.headers["www-authenticate"].startswith("Bearer")
    assert "WWW-Authenticate" in head.headers["access-control-expose-headers"]


@pytest.mark.parametrize("origins", [("*",), ("*", LISTED)])
async def test_all_origins_may_read_but_only_listed_ones_create(origins: tuple[str, ...]) -> None:
    async with running(fast_settings(cors_allow_origin=origins)) as app:
        head = await asked_by(app, "OPTIONS", "/read", FOREIGN)
        assert head.headers["access-control-allow-origin"] == "*"
        assert (await ask(app, "POST", "/create", {ORIGIN: FOREIGN})).status == 403
        status = (await ask(app, "POST", "/create", {ORIGIN: LISTED})).status
        assert status == (200 if LISTED in origins else 403)
