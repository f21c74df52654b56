"""Watches the API server with kopf. What happens there only wakes the cluster that it concerns."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, cast

import kopf

from megaphone_operator.plan.names import CLUSTER, MANAGER, SERVICE_OF
from megaphone_operator.plan.resource import GROUP, VERSION

Wake = Callable[[str, str], None]
"""Takes the namespace and the name of a cluster."""

LABELLED = (
    ("apps", "v1", "deployments", CLUSTER),
    ("", "v1", "pods", CLUSTER),
    ("", "v1", "services", SERVICE_OF),
)
"""What is watched beside the resources, each with the label that names the cluster."""

BACKOFFS_S = (1, 1, 2, 3, *(5 for _ in range(100_000)))
"""The pauses between calls while the API server is away: for some days it may be."""


async def watch(
    wake: Wake, namespace: str | None, stop: asyncio.Event, on_start: Callable[[], None]
) -> None:
    """Watch until `stop` is set, in one namespace or in all of them.

    kopf writes nothing to objects: there are no handlers of changes, so no finalizers and no
    annotations. It signs in as this process may: by the file in KUBECONFIG, or by the service
    account of its pod. It takes SIGTERM and SIGINT for itself; then it calls `on_start`, which can
    take them back.
    """
    others = asyncio.all_tasks()
    tasks = await kopf.spawn_tasks(
        registry=_registry(wake),
        settings=_settings(namespace),
        # Without it kopf asks for the name of the user, who may have none.
        identity=cast("Any", MANAGER),
        standalone=True,
        clusterwide=namespace is None,
        namespaces=[] if namespace is None else [namespace],
        stop_flag=stop,
    )
    on_start()
    await kopf.run_tasks(tasks, ignored=others)


def _registry(wake: Wake) -> kopf.OperatorRegistry:
    registry = kopf.OperatorRegistry()
    kopf.on.login(registry=registry, errors=kopf.ErrorsMode.PERMANENT)(_sign_in)

    async def resource(namespace: str | None, name: str, **_: Any) -> None:
        assert namespace is not None
        wake(namespace, name)

    kopf.on.event(GROUP, VERSION, "megaphones", registry=registry)(resource)
    for group, version, plural, label in LABELLED:
        handler = _child_handler(wake, label)
        labels = {label: kopf.PRESENT}
        kopf.on.event(group, version, plural, labels=labels, registry=registry)(handler)
    return registry


def _child_handler(wake: Wake, label: str) -> Any:
    async def child(namespace: str, labels: Mapping[str, str], **_: Any) -> None:
        wake(namespace, labels[label])

    return child


def _sign_in(**arguments: Any) -> kopf.ConnectionInfo | None:
    return kopf.login_with_kubeconfig(**arguments) or kopf.login_with_service_account(**arguments)


def _settings(namespace: str | None) -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    # Only an operator for all namespaces may look for resource definitions that come and go.
    settings.scanning.disabled = namespace is not None
    settings.posting.enabled = False
    settings.networking.error_backoffs = BACKOFFS_S
    for group, version, plural, label in LABELLED:
        settings.watching.label_selectors[group, version, plural] = label
    return settings
