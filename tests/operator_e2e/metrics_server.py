"""The API of pods' metrics: it says of each pod that it uses the memory that a test wants.

The API server of Kubernetes passes the questions of autoscalers on to it.
"""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from aiohttp import web

from tests.operator_e2e.addresses import API_SERVER
from tests.operator_e2e.api import Api, Object, name_of, path_of
from tests.operator_e2e.cluster import until
from tests.operator_e2e.kubectl import Kubectl
from tests.support.certificates import Authority

PORT = 4443
WITHIN_S = 60.0
GROUP = "metrics.k8s.io"
VERSION = f"{GROUP}/v1beta1"
PLACE = {"name": "metrics-server", "namespace": "kube-system"}
RESOURCES = [
    {"name": "pods", "kind": "PodMetrics", "namespaced": True, "verbs": ["get", "list"]},
]
REGISTRATION: list[Object] = [
    {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": PLACE,
        "spec": {"ports": [{"name": "https", "port": 443, "targetPort": PORT}]},
    },
    {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": PLACE | {"labels": {"kubernetes.io/service-name": PLACE["name"]}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [API_SERVER], "conditions": {"ready": True}}],
        "ports": [{"name": "https", "port": PORT, "protocol": "TCP"}],
    },
    {
        "apiVersion": "apiregistration.k8s.io/v1",
        "kind": "APIService",
        "metadata": {"name": f"v1beta1.{GROUP}"},
        "spec": {
            "group": GROUP,
            "version": "v1beta1",
            "service": PLACE,
            "insecureSkipTLSVerify": True,
            "groupPriorityMinimum": 100,
            "versionPriority": 100,
        },
    },
]


@dataclass
class MetricsServer:
    """Says the same of each pod."""

    api: Api
    mib: int = 0
    asked_for: set[str] = field(default_factory=set)
    """The namespaces that somebody has asked for, by the labels of pods."""

    async def resources(self, request: web.Request) -> web.Response:
        body = {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": VERSION}
        return web.json_response(body | {"resources": RESOURCES})

    async def pods(self, request: web.Request) -> web.Response:
        namespace = request.match_info["namespace"]
        wanted = request.query["labelSelector"]
        found = await self.api.items(path_of("pods", namespace), labelSelector=wanted)
        self.asked_for.add(namespace)
        items = [self._metrics(pod) for pod in found]
        body = {"kind": "PodMetricsList", "apiVersion": VERSION, "metadata": {}}
        return web.json_response(body | {"items": items})

    def _metrics(self, pod: Object) -> Object:
        usage = {"cpu": "1m", "memory": f"{self.mib}Mi"}
        metadata = {key: pod["metadata"][key] for key in ("name", "namespace", "labels")}
        containers = [{"name": one["name"], "usage": usage} for one in pod["spec"]["containers"]]
        time = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return {
            "metadata": metadata,
            "timestamp": time,
            "window": "10s",
            "containers": containers,
        }


@asynccontextmanager
async def metrics_server(api: Api, kubectl: Kubectl, folder: Path) -> AsyncIterator[MetricsServer]:
    """Serve within this context. The registration must not stay, because Kubernetes deletes no
    namespace while an API does not answer."""
    server = MetricsServer(api)
    made = Authority(folder, "metrics").issue("metrics-server", [API_SERVER])
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(made.certificate, made.key)
    app = web.Application()
    app.router.add_get(f"/apis/{VERSION}", server.resources)
    app.router.add_get(f"/apis/{VERSION}/namespaces/{{namespace}}/pods", server.pods)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, API_SERVER, PORT, ssl_context=context).start()
        kubectl.apply(*REGISTRATION)
        await until(lambda: is_served(api), WITHIN_S)
        yield server
    finally:
        for one in reversed(REGISTRATION):
            where = f"--namespace={one['metadata'].get('namespace', 'default')}"
            kubectl(where, "delete", one["kind"], name_of(one), "--ignore-not-found")
        await runner.cleanup()


async def is_served(api: Api) -> bool:
    return bool((await api.get(f"/apis/{VERSION}"))["groupVersion"] == VERSION)
