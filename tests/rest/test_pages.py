"""The pages for people: they come from the broker alone, and are kept by browsers."""

import json
import re

import aiohttp
import pytest

from megaphone.app import App
from megaphone.rest import pages
from megaphone.rest.pages import FOLDER
from tests.support.connections import connected_to, metric
from tests.support.faces import HttpFace
from tests.support.raw_http import request_of
from tests.support.scenes import eventually

PAGES = pytest.mark.parametrize("path", ["/", "/docs"])
FILE_LINK = re.compile(r'(?:src|href)="(site/[^"]+)"')


async def got(http: HttpFace, path: str) -> tuple[aiohttp.ClientResponse, bytes]:
    async with http.session.get(http.url(path)) as response:
        return response, await response.read()


@PAGES
async def test_a_page_may_load_nothing_from_elsewhere(http: HttpFace, path: str) -> None:
    response, body = await got(http, path)
    assert response.status == 200
    assert response.content_type == "text/html"
    assert "default-src 'self'" in response.headers["Content-Security-Policy"]
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Cache-Control"] == "no-cache"
    assert "Server" not in response.headers
    assert b"//" not in body, "an address of another host"
    assert b"{" not in re.sub(rb"<textarea.*?</textarea>", b"", body), "a place that nothing filled"


@PAGES
async def test_each_file_of_a_page_is_kept_for_long(http: HttpFace, path: str) -> None:
    _, body = await got(http, path)
    links = FILE_LINK.findall(body.decode())
    assert len(links) >= 3
    for link in links:
        response, file = await got(http, f"/{link}")
        assert response.status == 200
        assert response.headers["Cache-Control"] == "public, max-age=31536000, immutable"
        assert file == (FOLDER / link.rpartition("/")[2]).read_bytes()


async def test_a_page_of_another_broker_gets_the_files_of_this_one_but_does_not_keep_them(
    http: HttpFace,
) -> None:
    response, file = await got(http, "/site/another/home.js")
    assert (response.status, response.headers["Cache-Control"]) == (200, "no-cache")
    assert file == (FOLDER / "home.js").read_bytes()


@pytest.mark.parametrize(
    "path", ["/site/x/nothing.js", "/site/x/..", "/site/x/%2e%2e%2fpages.py", "/site/x", "/site"]
)
async def test_there_are_no_other_files(http: HttpFace, path: str) -> None:
    response, body = await got(http, path)
    assert response.status == 404
    assert b"NOT_FOUND" in body


@pytest.mark.settings(http_pages=False)
@pytest.mark.parametrize("path", ["/", "/docs", "/openapi.json", "/site/x/home.js"])
async def test_pages_can_be_turned_off(http: HttpFace, path: str) -> None:
    response, body = await got(http, path)
    assert response.status == 404
    told = json.loads(body)
    assert (told["code"], told["message"]) == ("NOT_FOUND", "no such route")  # never changes


async def test_a_client_that_takes_nothing_of_a_file_loses_its_connection(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "STALL_S", 0.1)
    async with connected_to(app.http_port, receive_buffer=4_096) as [connection]:
        request = request_of("GET", "/site/x/swagger-ui-bundle.js", b"", {})
        await connection.send(request * 5)  # more than the kernel takes for a client
        assert await connection.receive(1)
        assert await metric(app, "megaphone_connections") == 1

        async def is_gone() -> bool:
            return await metric(app, "megaphone_connections") == 0

        await eventually(is_gone)
