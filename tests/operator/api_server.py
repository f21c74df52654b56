"""An API server of Kubernetes in memory: objects by their paths, versions, watches, selectors.

It has no schemas, no garbage collection and no controllers. It lets in only what the shipped role
allows, so an operator that does more than the role says fails here.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from copy import deepcopy
from datetime import UTC, datetime
from typing import Any, NamedTuple

import yaml
from aiohttp import web

from tests.support.documented import ROOT

ROLE = ROOT / "deploy" / "operator" / "operator.yaml"
Body = dict[str, Any]
Key = tuple[str, str, str]
"""The plural, the namespace and the name of an object."""

KINDS = {
    ("", "v1"): ("configmaps", "events", "namespaces", "pods", "secrets", "services"),
    ("apiextensions.k8s.io", "v1"): ("customresourcedefinitions",),
    ("apps", "v1"): ("deployments",),
    ("coordination.k8s.io", "v1"): ("leases",),
    ("d71.dev", "v1"): ("megaphones",),
    ("networking.k8s.io", "v1"): ("networkpolicies",),
    ("policy", "v1"): ("poddisruptionbudgets",),
}
GLOBAL = ("namespaces", "customresourcedefinitions")
VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


class Call(NamedTuple):
    """What a caller wants, in the words of a role."""

    verb: str
    group: str
    resource: str
    """The plural, with a subresource after a slash."""
    name: str


class ApiServer:
    def __init__(self) -> None:
        self.objects: dict[Key, Body] = {}
        self.calls: list[Call] = []
        self.refuse: Callable[[Call], int | None] = lambda _: None
        """Returns the status with which a call fails."""
        self.url = ""
        self._version = 0
        self._watches: set[tuple[str, str | None, asyncio.Queue[tuple[str, Body]]]] = set()
        self._rules = list(_rules())

    # -- What tests do

    def put(self, plural: str, body: Body) -> Body:
        """Write an object as it is."""
        metadata = body["metadata"]
        key = (plural, metadata.get("namespace", ""), metadata["name"])
        return self._store(key, deepcopy(body))

    def get(self, plural: str, name: str, namespace: str = "default") -> Body | None:
        return self.objects.get((plural, namespace, name))

    def names(self, plural: str, namespace: str = "default") -> set[str]:
        return {key[2] for key in self.objects if key[:2] == (plural, namespace)}

    def remove(self, plural: str, name: str, namespace: str = "default") -> None:
        body = self.objects.pop((plural, namespace, name))
        self._tell("DELETED", (plural, namespace, name), body)

    def _store(self, key: Key, body: Body) -> Body:
        before, self._version = self.objects.get(key), self._version + 1
        metadata = body["metadata"]
        old = before["metadata"] if before else {}
        metadata["uid"] = old.get("uid") or metadata.get("uid") or f"uid-{self._version}"
        metadata["creationTimestamp"] = old.get("creationTimestamp") or _now()
        changed = before is None or before.get("spec") != body.get("spec")
        metadata["generation"] = old.get("generation", 0) + changed
        metadata["resourceVersion"] = old.get("resourceVersion", "")
        if before == body:
            return body
        metadata["resourceVersion"] = str(self._version)
        self.objects[key] = body
        self._tell("MODIFIED" if before else "ADDED", key, body)
        return body

    def _tell(self, kind: str, key: Key, body: Body) -> None:
        for plural, namespace, queue in self._watches:
            if plural == key[0] and namespace in (None, key[1]):
                queue.put_nowait((kind, deepcopy(body)))

    # -- What callers get

    async def answer(self, request: web.Request) -> web.StreamResponse:
        parts = request.path.strip("/").split("/")
        if (found := _discovery(parts)) is not None:
            return _json(found)
        group, _, *rest = ["", *parts[1:]] if parts[0] == "api" else parts[1:]
        namespace = None
        if rest[0] == "namespaces" and len(rest) > 2:
            namespace, rest = rest[1], rest[2:]
        plural, name, sub = [*rest, "", ""][:3]
        watches = request.query.get("watch") == "true"
        verb = VERBS.get(request.method) or ("get" if name else "watch" if watches else "list")
        resource = f"{plural}/{sub}" if sub else plural
        call = Call(verb, group, resource, name)
        self.calls.append(call)
        if not any(_allows(rule, call) for rule in self._rules):
            return _failure(403, f"the role does not allow {verb} {resource} of {group!r}")
        if status := self.refuse(call):
            return _failure(status, "refused by the test")
        if watches:
            return await self._watch(request, plural, namespace)
        body = await request.json() if request.can_read_body else {}
        return self._serve(request, call, (plural, namespace or "", name), body)

    def _serve(self, request: web.Request, call: Call, key: Key, body: Body) -> web.StreamResponse:
        if call.verb == "list":
            return self._list(request, key)
        if call.verb == "create":
            key = (*key[:2], body["metadata"]["name"])
            if key in self.objects:
                return _failure(409, f"{key} is there already")
            return _json(self._store(key, body), status=201)
        found = self.objects.get(key)
        kind = request.content_type
        if call.verb == "patch" and kind == "application/apply-patch+yaml":
            return _json(self._store(key, _merged(found or {}, body)))
        if found is None:
            return _failure(404, f"{key} is not there")
        match call.verb:
            case "get":
                return _json(found)
            case "delete":
                self.remove(key[0], key[2], key[1])
                return _json({"kind": "Status", "status": "Success"})
            case "update":
                if body["metadata"].get("resourceVersion") != found["metadata"]["resourceVersion"]:
                    return _failure(409, "the object has changed")
                return _json(self._store(key, body))
        is_strategic = kind == "application/strategic-merge-patch+json"
        return _json(self._store(key, _merged(found, body, is_strategic)))

    def _list(self, request: web.Request, key: Key) -> web.StreamResponse:
        items = [
            body
            for (plural, namespace, _), body in self.objects.items()
            if plural == key[0] and key[1] in ("", namespace) and _selects(request, body)
        ]
        metadata = {"resourceVersion": str(self._version)}
        return _json({"kind": "List", "metadata": metadata, "items": items})

    async def _watch(
        self, request: web.Request, plural: str, namespace: str | None
    ) -> web.StreamResponse:
        queue: asyncio.Queue[tuple[str, Body]] = asyncio.Queue()
        since = int(request.query.get("resourceVersion") or self._version)
        for (one, its_namespace, _), body in self.objects.items():
            is_new = int(body["metadata"]["resourceVersion"]) > since
            if one == plural and namespace in (None, its_namespace) and is_new:
                queue.put_nowait(("ADDED", body))
        watch = (plural, namespace, queue)
        self._watches.add(watch)
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                kind, body = await queue.get()
                if _selects(request, body):
                    line = json.dumps({"type": kind, "object": body})
                    await response.write(line.encode() + b"\n")
        finally:
            self._watches.discard(watch)


def _discovery(parts: list[str]) -> Body | None:
    """Return what the API server says of itself, for paths that name no object."""
    if parts == ["version"]:
        return {"major": "1", "minor": "37", "gitVersion": "v1.37.0"}
    if parts == ["api"]:
        return {"kind": "APIVersions", "versions": ["v1"]}
    if parts == ["apis"]:
        versions = {one: {"groupVersion": f"{one}/v1", "version": "v1"} for one, _ in KINDS if one}
        groups = [
            {"name": one, "versions": [version], "preferredVersion": version}
            for one, version in versions.items()
        ]
        return {"kind": "APIGroupList", "groups": groups}
    if parts != ["api", "v1"] and (parts[0], len(parts)) != ("apis", 3):
        return None
    group = "" if parts[0] == "api" else parts[1]
    verbs = ["create", "delete", "get", "list", "patch", "update", "watch"]
    resources = [
        {"name": one, "singularName": one[:-1], "kind": one, "verbs": verbs}
        | {"namespaced": one not in GLOBAL}
        for one in KINDS[group, "v1"]
    ]
    return {"kind": "APIResourceList", "resources": resources}


def _rules() -> Iterator[Body]:
    """Yield the rules of the roles that the operator has."""
    for one in yaml.safe_load_all(ROLE.read_text()):
        if one["kind"] in ("Role", "ClusterRole") and "operator" in one["metadata"]["name"]:
            yield from one["rules"]


def _allows(rule: Body, call: Call) -> bool:
    return (
        call.group in rule["apiGroups"]
        and call.resource in rule["resources"]
        and call.verb in rule["verbs"]
        and (call.name in rule.get("resourceNames", [call.name]))
    )


def _selects(request: web.Request, body: Body) -> bool:
    labels = body["metadata"].get("labels") or {}
    for part in filter(None, request.query.get("labelSelector", "").split(",")):
        name, _, value = part.partition("=")
        if name not in labels or (value and labels[name] != value):
            return False
    return True


def _merged(before: Body, patch: Body, is_strategic: bool = False) -> Body:
    """Return an object with a patch laid over it. In a strategic patch, conditions are merged by
    their types."""
    merged = deepcopy(before)
    for name, value in patch.items():
        if isinstance(value, dict) and isinstance(merged.get(name), dict) and name != "selector":
            merged[name] = _merged(merged[name], value, is_strategic)
        elif is_strategic and name == "conditions":
            types = {one["type"] for one in value}
            kept = [one for one in merged.get(name) or () if one["type"] not in types]
            merged[name] = kept + value
        elif value is None:
            merged.pop(name, None)
        else:
            merged[name] = deepcopy(value)
    return merged


def _failure(code: int, message: str) -> web.StreamResponse:
    body = {"kind": "Status", "status": "Failure", "message": message, "code": code}
    return _json(body, status=code)


def _json(body: Body, status: int = 200) -> web.Response:
    # Without a character set, as the API server has it.
    return web.Response(
        body=json.dumps(body).encode(), status=status, content_type="application/json"
    )


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@asynccontextmanager
async def api_server() -> AsyncIterator[ApiServer]:
    server = ApiServer()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.answer)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield server
    finally:
        await runner.cleanup()
