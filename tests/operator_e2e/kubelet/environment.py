"""The environment of a container."""

import base64
import re
from collections.abc import Callable, Mapping
from typing import Any

from tests.operator_e2e.api import Api, ApiError, Object, name_of, namespace_of, path_of

REFERENCE = re.compile(r"\$\$|\$\(([A-Za-z_][\w.-]*)\)")


class NotReady(Exception):
    """Something that the container needs is not there yet."""


async def environment_of(
    api: Api, pod: Object, container: Object, base: Mapping[str, str]
) -> dict[str, str]:
    """Return the environment that a pod gives to a container, laid over that of its image.

    Raises: NotReady, if a secret, a map or a key of them is missing.
    """
    made = dict(base)
    if pod["spec"].get("enableServiceLinks", True):
        made |= await service_links(api, namespace_of(pod))
    for source in container.get("envFrom", ()):
        made |= await all_keys(api, pod, source)
    for entry in container.get("env", ()):
        value = expand(entry.get("value", ""), made)
        if "valueFrom" in entry:
            found = await value_from(api, pod, entry["valueFrom"])
            if found is None:
                continue
            value = found
        made[entry["name"]] = value
    return made


def expand(text: str, known: Mapping[str, str]) -> str:
    """Replace `$(NAME)` where the name is known; `$$` means `$`."""

    def one(match: re.Match[str]) -> str:
        name = match[1]
        return "$" if name is None else known.get(name, match[0])

    return REFERENCE.sub(one, text)


async def service_links(api: Api, namespace: str) -> dict[str, str]:
    """Return the variables that name the services of a namespace, and the API server."""
    services = await api.items(path_of("services", namespace))
    if (server := await api.find(path_of("services", "default", "kubernetes"))) is not None:
        services.append(server)
    made: dict[str, str] = {}
    for service in services:
        address = service["spec"].get("clusterIP", "None")
        if address == "None" or not service["spec"].get("ports"):
            continue
        name = name_of(service).upper().replace("-", "_")
        first = service["spec"]["ports"][0]
        made[f"{name}_SERVICE_HOST"] = address
        made[f"{name}_SERVICE_PORT"] = str(first["port"])
        made[f"{name}_PORT"] = f"tcp://{address}:{first['port']}"
        for port in service["spec"]["ports"]:
            if "name" in port:
                label = port["name"].upper().replace("-", "_")
                made[f"{name}_SERVICE_PORT_{label}"] = str(port["port"])
            prefix = f"{name}_PORT_{port['port']}_{port.get('protocol', 'TCP')}"
            made[prefix] = f"tcp://{address}:{port['port']}"
            made[f"{prefix}_PORT"] = str(port["port"])
            made[f"{prefix}_ADDR"] = address
    return made


async def all_keys(api: Api, pod: Object, source: Object) -> dict[str, str]:
    kind, reference = next((k, source[k]) for k in ("configMapRef", "secretRef") if k in source)
    resource = "configmaps" if kind == "configMapRef" else "secrets"
    values = await values_of(api, pod, resource, reference)
    prefix = source.get("prefix", "")
    return {f"{prefix}{key}": value.decode() for key, value in (values or {}).items()}


async def value_from(api: Api, pod: Object, source: Object) -> str | None:
    """Return a value, or None if it is missing and may be."""
    if "fieldRef" in source:
        return field_of(pod, source["fieldRef"]["fieldPath"])
    kind, reference = next(
        (k, source[k]) for k in ("configMapKeyRef", "secretKeyRef") if k in source
    )
    resource = "configmaps" if kind == "configMapKeyRef" else "secrets"
    values = await values_of(api, pod, resource, reference)
    if values is None or reference["key"] not in values:
        if reference.get("optional"):
            return None
        raise NotReady(f"{resource} {reference['name']} has no key {reference['key']}")
    return values[reference["key"]].decode()


async def values_of(
    api: Api, pod: Object, resource: str, reference: Object
) -> dict[str, bytes] | None:
    """Return the values of a secret or a map; None if it is missing and may be.

    Raises: NotReady.
    """
    try:
        found = await api.get(path_of(resource, namespace_of(pod), reference["name"]))
    except ApiError as error:
        if error.status == 404 and reference.get("optional"):
            return None
        raise NotReady(str(error)) from error
    values = {key: text.encode() for key, text in found.get("data", {}).items()}
    if resource == "secrets":
        return {key: base64.b64decode(text) for key, text in values.items()}
    binary = found.get("binaryData", {})
    return values | {key: base64.b64decode(text) for key, text in binary.items()}


FIELDS: Mapping[str, Callable[[Object], Any]] = {
    "metadata.name": name_of,
    "metadata.namespace": namespace_of,
    "metadata.uid": lambda pod: pod["metadata"]["uid"],
    "spec.nodeName": lambda pod: pod["spec"]["nodeName"],
    "spec.serviceAccountName": lambda pod: pod["spec"].get("serviceAccountName", "default"),
    "status.podIP": lambda pod: pod["status"]["podIP"],
    "status.hostIP": lambda pod: pod["status"]["hostIP"],
}
PART = re.compile(r"metadata\.(labels|annotations)\['(.+)'\]")


def field_of(pod: Object, path: str) -> str:
    """Return a field of a pod. Raises: NotReady, if pods here have no such field."""
    if (match := PART.fullmatch(path)) is not None:
        return str(pod["metadata"].get(match[1], {}).get(match[2], ""))
    if path not in FIELDS:
        raise NotReady(f"a pod has no field {path}")
    return str(FIELDS[path](pod))
