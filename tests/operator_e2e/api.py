"""The API of Kubernetes, as the process kubelet and the scenarios call it."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

CALL_S = 30.0
SILENCE_S = 60.0
"""How long a watch may say nothing. Bookmarks come once a minute at the latest."""
AGAIN_S = 0.3
"""How long a client waits before it asks an API server again that has not answered."""

Object = dict[str, Any]

STRATEGIC = "application/strategic-merge-patch+json"
MERGE = "application/merge-patch+json"
APPLY = "application/apply-patch+yaml"

PLACES = {
    "v1": [
        "configmaps",
        "events",
        "namespaces",
        "nodes",
        "pods",
        "secrets",
        "serviceaccounts",
        "services",
    ],
    "apps/v1": ["deployments", "replicasets"],
    "coordination.k8s.io/v1": ["leases"],
    "d71.dev/v1": ["megaphones"],
    "discovery.k8s.io/v1": ["endpointslices"],
    "networking.k8s.io/v1": ["networkpolicies"],
    "policy/v1": ["poddisruptionbudgets"],
}
GROUP_OF = {resource: group for group, resources in PLACES.items() for resource in resources}


class ApiError(Exception):
    """The API server refused a call."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message


AWAY = (aiohttp.ClientError, OSError, TimeoutError)
"""What a client sees of an API server that is not there."""


@dataclass(frozen=True, slots=True)
class Access:
    """The address of an API server, and the right to call it."""

    url: str
    token: str
    authority: Path
    """The file with the certificate of the authority that signed the server's."""

    @classmethod
    def load(cls, path: Path) -> "Access":
        saved = json.loads(path.read_text())
        return cls(saved["url"], saved["token"], Path(saved["authority"]))

    def save(self, path: Path) -> None:
        saved = {"url": self.url, "token": self.token, "authority": str(self.authority)}
        path.write_text(json.dumps(saved))


def path_of(resource: str, namespace: str | None = None, *rest: str) -> str:
    """Return the path of a resource, of an object, or of a part of an object."""
    group = GROUP_OF[resource]
    parts = ["api" if group == "v1" else "apis", group]
    if namespace is not None:
        parts += ["namespaces", namespace]
    return "/" + "/".join([*parts, resource, *rest])


class Api:
    """Calls an API server."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        context = ssl.create_default_context(cafile=str(self._access.authority))
        self._session = aiohttp.ClientSession(
            self._access.url,
            connector=aiohttp.TCPConnector(limit=0, ssl=context),
            headers={"Authorization": f"Bearer {self._access.token}"},
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        content: str = "application/json",
        **query: str,
    ) -> Object:
        """Call the API server. Raises: ApiError, or one of AWAY."""
        async with self._open(method, path, body, content, query, total_s=CALL_S) as answer:
            await refuse(answer)
            found: Object = json.loads(await answer.read())
            return found

    async def text(self, path: str, **query: str) -> str:
        async with self._open("GET", path, None, "", query, total_s=CALL_S) as answer:
            await refuse(answer)
            found: str = await answer.text()
            return found

    def _open(
        self,
        method: str,
        path: str,
        body: object,
        content: str,
        query: Mapping[str, str],
        *,
        total_s: float | None,
        silence_s: float | None = None,
    ) -> Any:
        assert self._session is not None
        return self._session.request(
            method,
            path,
            data=None if body is None else json.dumps(body),
            params=query,
            headers={"Content-Type": content} if body is not None else None,
            timeout=aiohttp.ClientTimeout(total=total_s, sock_read=silence_s),
        )

    async def get(self, path: str, **query: str) -> Object:
        return await self.call("GET", path, **query)

    async def find(self, path: str) -> Object | None:
        """Return an object, or None if there is none."""
        try:
            return await self.get(path)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def items(self, path: str, **query: str) -> list[Object]:
        found: list[Object] = (await self.get(path, **query))["items"]
        return found

    async def create(self, path: str, body: Object) -> Object:
        return await self.call("POST", path, body)

    async def patch(self, path: str, body: Object, content: str = MERGE, **query: str) -> Object:
        return await self.call("PATCH", path, body, content=content, **query)

    async def delete(self, path: str, body: Object | None = None, **query: str) -> None:
        """Delete an object, unless there is none."""
        try:
            await self.call("DELETE", path, body, **query)
        except ApiError as error:
            if error.status != 404:
                raise

    async def follow(self, path: str, **query: str) -> AsyncIterator[dict[str, Object]]:
        """Yield all objects of a path, by uid, after each change. Never end, and go on after each
        failure of the API server.
        """
        while True:
            with suppress(ApiError, *AWAY):
                listed = await self.get(path, **query)
                known = {uid_of(one): one for one in listed["items"]}
                yield dict(known)
                version = listed["metadata"]["resourceVersion"]
                async for kind, one in self._changes(path, version, query):
                    if kind == "ERROR":
                        break
                    if kind == "DELETED":
                        known.pop(uid_of(one), None)
                    elif kind != "BOOKMARK":
                        known[uid_of(one)] = one
                    yield dict(known)
            await asyncio.sleep(AGAIN_S)

    async def _changes(
        self, path: str, version: str, query: Mapping[str, str]
    ) -> AsyncIterator[tuple[str, Object]]:
        watch = {**query, "watch": "1", "resourceVersion": version, "allowWatchBookmarks": "true"}
        opened = self._open("GET", path, None, "", watch, total_s=None, silence_s=2 * SILENCE_S)
        async with opened as answer:
            await refuse(answer)
            async for line in lines_of(answer.content):
                change = json.loads(line)
                yield change["type"], change["object"]


async def lines_of(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Yield whole lines. A line may be longer than the buffer of the reader."""
    rest = b""
    async for piece in content.iter_any():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield line


async def refuse(answer: aiohttp.ClientResponse) -> None:
    """Raises: ApiError, if the answer is one."""
    if answer.status < 400:
        return
    text = await answer.text()
    try:
        status = json.loads(text)
    except ValueError:
        status = {"message": text}
    raise ApiError(answer.status, status.get("reason", ""), status.get("message", ""))


def uid_of(one: Object) -> str:
    return str(one["metadata"]["uid"])


def name_of(one: Object) -> str:
    return str(one["metadata"]["name"])


def namespace_of(one: Object) -> str:
    return str(one["metadata"]["namespace"])
