"""The volumes of a pod, as folders that its containers mount."""

import asyncio
from collections.abc import Mapping
from pathlib import Path

from tests.operator_e2e.api import Api, Object, namespace_of, path_of
from tests.operator_e2e.kubelet.environment import NotReady, field_of, values_of

TOKEN_S = 3600


async def make(api: Api, pod: Object, folder: Path) -> dict[str, Path]:
    """Make the volumes of a pod, each in a folder of its name. Raises: NotReady."""
    made: dict[str, Path] = {}
    for volume in pod["spec"].get("volumes", ()):
        made[volume["name"]] = place = folder / volume["name"]
        place.mkdir(parents=True, exist_ok=True)
        if "emptyDir" in volume:
            place.chmod(0o777)
            continue
        for path, content in (await files_of(api, pod, volume)).items():
            file = place / path
            file.parent.mkdir(parents=True, exist_ok=True)
            await asyncio.to_thread(file.write_bytes, content)
    return made


async def files_of(api: Api, pod: Object, volume: Object) -> Mapping[str, bytes]:
    """Return the files of a volume, by path. Raises: NotReady."""
    if "configMap" in volume:
        return await files_of_object(api, pod, "configmaps", volume["configMap"])
    if "secret" in volume:
        secret = volume["secret"]
        return await files_of_object(api, pod, "secrets", {**secret, "name": secret["secretName"]})
    if "downwardAPI" in volume:
        return files_of_pod(pod, volume["downwardAPI"])
    if "projected" in volume:
        made: dict[str, bytes] = {}
        for source in volume["projected"]["sources"]:
            made |= await files_of_source(api, pod, source)
        return made
    raise NotReady(f"volume {volume['name']} is of a kind that this kubelet does not know")


async def files_of_source(api: Api, pod: Object, source: Object) -> Mapping[str, bytes]:
    if "serviceAccountToken" in source:
        wanted = source["serviceAccountToken"]
        return {wanted["path"]: (await token_of(api, pod, wanted)).encode()}
    if "downwardAPI" in source:
        return files_of_pod(pod, source["downwardAPI"])
    if "secret" in source:
        return await files_of_object(api, pod, "secrets", source["secret"])
    return await files_of_object(api, pod, "configmaps", source["configMap"])


async def files_of_object(
    api: Api, pod: Object, resource: str, source: Object
) -> Mapping[str, bytes]:
    values = await values_of(api, pod, resource, source)
    if values is None or "items" not in source:
        return values or {}
    lacking = [item["key"] for item in source["items"] if item["key"] not in values]
    if lacking:
        raise NotReady(f"{resource} {source['name']} lacks {', '.join(lacking)}")
    return {item["path"]: values[item["key"]] for item in source["items"]}


def files_of_pod(pod: Object, source: Object) -> Mapping[str, bytes]:
    return {
        item["path"]: field_of(pod, item["fieldRef"]["fieldPath"]).encode()
        for item in source["items"]
    }


async def token_of(api: Api, pod: Object, wanted: Object) -> str:
    """Return a token of the service account of a pod, which is bound to the pod."""
    metadata = pod["metadata"]
    request = {
        "spec": {
            "audiences": [wanted["audience"]] if "audience" in wanted else [],
            "expirationSeconds": wanted.get("expirationSeconds", TOKEN_S),
            "boundObjectRef": {
                "kind": "Pod",
                "apiVersion": "v1",
                "name": metadata["name"],
                "uid": metadata["uid"],
            },
        }
    }
    account = pod["spec"].get("serviceAccountName", "default")
    path = path_of("serviceaccounts", namespace_of(pod), account, "token")
    return str((await api.create(path, request))["status"]["token"])
