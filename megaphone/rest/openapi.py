"""Describes the HTTP API in OpenAPI 3.1, from the routes that are served and `rest.operations`."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from aiohttp import web

from megaphone import __version__
from megaphone.errors import MegaphoneError
from megaphone.rest.operations import (
    GROUPS,
    JSON,
    OF_CALLERS,
    OPERATIONS,
    Answer,
    Operation,
    Parameter,
)
from megaphone.wire import bodies, errors

VARIABLE = re.compile(r"\{(\w+):[^{}]*\}")
ERROR = {"$ref": "#/components/schemas/Error"}
BEARER = "bearer"
SECURITY_SCHEMES = {
    BEARER: {
        "type": "http",
        "scheme": "bearer",
        "description": "A token, for the actions for which the node requires one.",
    }
}
RETRY_AFTER = {
    "Retry-After": {
        "description": "After how many seconds the same request may succeed.",
        "schema": {"type": "integer", "minimum": 0},
    }
}
ABOUT = """\
Back ends create a *channel*, hand its consumer address to a client, and write events to its
producer address. The client reads them as soon as they are written.

An error is `{"code", "message", …}`: a client decides by the code, which never changes. Any request
can also be answered 400 if it is not valid HTTP, 429 if the node has no connection left, and 500 if
the broker has a bug."""


def document(routes: Iterable[web.RouteDef]) -> bytes:
    """Return the description of some routes, as JSON.

    Raises: KeyError, if a route has no row in `OPERATIONS`.
    """
    described = [(route.method, path_of(route)) for route in routes]
    rows = {key: OPERATIONS[key] for key in described}
    schemas, components = schemas_of(rows.values())
    paths: dict[str, dict[str, Any]] = {}
    for (method, path), row in rows.items():
        paths.setdefault(path, {})[method.lower()] = operation(row, schemas)
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "Megaphone",
                "version": __version__,
                "description": ABOUT,
                "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            },
            "tags": [{"name": name, "description": text} for name, text in GROUPS.items()],
            "paths": paths,
            "components": {"schemas": components, "securitySchemes": SECURITY_SCHEMES},
        }
    )


def path_of(route: web.RouteDef) -> str:
    """Return the path of a route with bare variables."""
    return VARIABLE.sub(r"{\1}", route.path)


def schemas_of(rows: Iterable[Operation]) -> tuple[dict[Any, Any], dict[str, Any]]:
    """Return the schema of each type of a body, and the schemas to which they refer."""
    types: list[Any] = [bodies.Error]
    for row in rows:
        if row.body is not None:
            types.append(row.body)
        for answer in (row.answer, *row.other_answers):
            types += answer.contents.values()
    unique = list(dict.fromkeys(types))
    schemas, components = msgspec.json.schema_components(
        unique, ref_template="#/components/schemas/{name}"
    )
    return dict(zip(unique, schemas, strict=True)), components


def operation(row: Operation, schemas: Mapping[Any, Any]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": row.name,
        "tags": [row.group],
        "summary": row.summary,
        "responses": responses(row, schemas),
    }
    if row.action is not None:
        described["security"] = [{}, {BEARER: []}]
    if row.description:
        described["description"] = row.description
    if row.parameters:
        described["parameters"] = [parameter(one) for one in row.parameters]
    if row.body is not None:
        described["requestBody"] = {
            "required": row.needs_body,
            "content": {JSON: {"schema": schemas[row.body], "example": row.example}},
        }
    return described


def parameter(described: Parameter) -> dict[str, Any]:
    return {
        "name": described.name,
        "in": described.place,
        "required": described.place == "path",
        "description": described.description,
        "schema": described.schema,
    }


def responses(row: Operation, schemas: Mapping[Any, Any]) -> dict[str, Any]:
    by_status: dict[int, dict[str, Any]] = {}
    for answer in (row.answer, *row.other_answers):
        by_status[answer.status] = response(answer, schemas)
    of_caller = () if row.action is None else OF_CALLERS
    for status, possible in sorted(errors_by_status((*row.errors, *of_caller)).items()):
        by_status[status] = refusal(possible)
    by_status[errors.INTERNAL_HTTP_STATUS] = refusal_with(f"`{errors.INTERNAL_CODE}`: a bug.")
    return {str(status): by_status[status] for status in sorted(by_status)}


def response(answer: Answer, schemas: Mapping[Any, Any]) -> dict[str, Any]:
    described: dict[str, Any] = {"description": answer.description}
    if answer.contents:
        described["content"] = {
            content_type: {"schema": schemas[body]}
            for content_type, body in answer.contents.items()
        }
    if answer.headers:
        described["headers"] = {
            name: {"description": text, "schema": {"type": "string"}}
            for name, text in answer.headers.items()
        }
    return described


def errors_by_status(
    possible: Sequence[type[MegaphoneError]],
) -> dict[int, list[type[MegaphoneError]]]:
    by_status: dict[int, list[type[MegaphoneError]]] = {}
    for row in errors.TABLE:
        if row.error in possible:
            by_status.setdefault(row.http_status, []).append(row.error)
    return by_status


def refusal(possible: Sequence[type[MegaphoneError]]) -> dict[str, Any]:
    """Return the answer with one of several errors of the same status."""
    described = refusal_with("\n\n".join(f"`{one.code}`: {meaning(one)}" for one in possible))
    if any(one.retry_after_s is not None for one in possible):
        described["headers"] = RETRY_AFTER
    return described


def refusal_with(description: str) -> dict[str, Any]:
    return {"description": description, "content": {JSON: {"schema": ERROR}}}


def meaning(error: type[MegaphoneError]) -> str:
    return " ".join((error.__doc__ or "").split())
