"""Taking over from the former operator: its stored resource, its services and its bare pods.

The former pods run the Rust broker (0.10), which `make compat` builds.
"""

import asyncio
import json
import re
import shlex
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
import pytest

from tests.compat import original
from tests.operator_e2e.api import APPLY, Api, Object, name_of, path_of, uid_of
from tests.operator_e2e.cluster import until
from tests.operator_e2e.demo import OLD_IMAGE, Demo
from tests.operator_e2e.install import OPERATOR, install_operator
from tests.operator_e2e.kubectl import Kubectl
from tests.operator_e2e.kubelet.images import ROOT
from tests.operator_e2e.load import load
from tests.operator_e2e.report import LINES

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(not original.BROKER.exists(), reason="needs the Rust broker: make compat"),
]
WITHIN_S = 90.0
NAME = "former"
FORMER_IMAGE = "dghila/megaphone:0.10.5"
FORMER_MANAGER = "workload-Controller"
FINALIZER = "megaphone.d71.dev"
USED, EMPTY = AGENTS = ("00000000000000a1", "00000000000000a2")
"""The agents of the former pods. New channels go to the first one."""
CHANNELS = 6
PAUSE_S = 0.3
QUANTITIES = {
    "type": "object",
    "nullable": True,
    "properties": {
        "cpu": {"type": "string", "nullable": True},
        "memory": {"type": "string", "nullable": True},
    },
}
SPEC: Object = {
    "type": "object",
    "required": ["image", "replicas", "virtualAgentsPerNode"],
    "properties": {
        "image": {"type": "string"},
        "replicas": {"type": "integer", "format": "uint", "minimum": 0},
        "virtualAgentsPerNode": {"type": "integer", "format": "uint", "minimum": 1},
        "resources": {
            "type": "object",
            "nullable": True,
            "properties": {"limits": QUANTITIES, "requests": QUANTITIES},
        },
    },
}
STATUS: Object = {
    "type": "object",
    "nullable": True,
    "required": ["pods"],
    "properties": {
        "clusterStatus": {"type": "string", "enum": ["idle", "upgrade"], "default": "idle"},
        "pods": {"type": "array", "items": {"type": "string"}},
        "services": {"type": "array", "items": {"type": "string"}, "default": []},
        "upgradeSpec": {**SPEC, "nullable": True},
    },
}
DEFINITION: Object = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "megaphones.d71.dev"},
    "spec": {
        "group": "d71.dev",
        "scope": "Namespaced",
        "names": {"kind": "Megaphone", "plural": "megaphones", "singular": "megaphone"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "subresources": {
                    "status": {},
                    "scale": {
                        "specReplicasPath": ".spec.replicas",
                        "statusReplicasPath": ".status.replicas",
                    },
                },
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "required": ["spec"],
                        "properties": {"spec": SPEC, "status": STATUS},
                    }
                },
            }
        ],
    },
}
"""The resource definition of the former operator, as far as it says which resources are valid."""


class Former:
    """The former operator, as far as it has left objects behind."""

    def __init__(self, api: Api, namespace: str) -> None:
        self._api = api
        self._namespace = namespace

    async def leave_cluster(self) -> None:
        """Make a resource with finalizer and status, its services, and one pod for each agent."""
        made = await self._api.create(
            path_of("megaphones", self._namespace),
            {
                "apiVersion": "d71.dev/v1",
                "kind": "Megaphone",
                "metadata": {"name": NAME, "finalizers": [FINALIZER]},
                "spec": {
                    "image": FORMER_IMAGE,
                    "replicas": len(AGENTS),
                    "virtualAgentsPerNode": 1,
                    "resources": {"limits": {"cpu": "50m", "memory": None}, "requests": None},
                },
            },
        )
        path = path_of("megaphones", self._namespace, NAME, "status")
        await self._api.patch(path, {"status": {"pods": [], "services": []}})
        self._owner = {
            "apiVersion": "d71.dev/v1",
            "kind": "Megaphone",
            "name": NAME,
            "uid": uid_of(made),
            "controller": True,
        }
        for number, agent in enumerate(AGENTS):
            takes = "ON" if agent == USED else "OFF"
            await self._apply("pods", self._pod(f"mgp-{NAME}-1234567890{number}", agent, takes))
        for body in self._services():
            await self._apply("services", body)

    async def run_pass(self) -> list[str]:
        """Do what a pass of the former operator does before its pods run: it counts all pods with
        the label of the cluster as its own, makes those that lack, applies its services without
        force, removes the other services with its label, and adds its finalizer.

        Returns: the names of the services that it removed. Raises: ApiError.
        """
        label = f"megaphone-cluster={NAME}"
        found = await self._api.items(path_of("pods", self._namespace), labelSelector=label)
        for number, agent in list(enumerate(AGENTS))[len(found) :]:
            takes = "ON" if agent == USED else "OFF"
            await self._apply("pods", self._pod(f"mgp-{NAME}-9876543210{number}", agent, takes))
        services = self._services()
        for body in services:
            await self._apply("services", body)
        kept = {name_of(body) for body in services}
        listed = await self._api.items(
            path_of("services", self._namespace), labelSelector=f"svc-{label}"
        )
        removed = sorted({name_of(one) for one in listed} - kept)
        for name in removed:
            await self._api.delete(path_of("services", self._namespace, name))
        await self._set_finalizers([FINALIZER])
        return removed

    async def leave(self) -> None:
        """Remove the finalizer, as it does when the resource is deleted."""
        await self._set_finalizers([])

    async def _set_finalizers(self, finalizers: list[str]) -> None:
        path = path_of("megaphones", self._namespace, NAME)
        await self._api.patch(path, {"metadata": {"finalizers": finalizers}})

    def _services(self) -> list[Object]:
        made = [self._service(f"svc-{NAME}", "accepts-new-channels")]
        for agent in AGENTS:
            for way in ("read", "write"):
                label = f"megaphone-{agent}-{way}"
                made.append(self._service(f"svc-{NAME}-{agent}-{way}", label))
        return made

    async def _apply(self, resource: str, body: Object) -> None:
        path = path_of(resource, self._namespace, name_of(body))
        query = {"fieldManager": FORMER_MANAGER}
        await self._api.patch(path, {"apiVersion": "v1", **body}, APPLY, **query)

    def _pod(self, name: str, agent: str, takes: str) -> Object:
        labels = {
            "megaphone-cluster": NAME,
            "megaphone-node": name,
            "accepts-new-channels": takes,
            f"megaphone-{agent}-read": "ON",
            f"megaphone-{agent}-write": "ON",
        }
        variables = [
            {"name": f"megaphone_agent.virtual.{agent}", "value": "MASTER"},
            {"name": "megaphone_agent_warmup_secs", "value": "0"},  # to save a minute
        ]
        container = {"name": "megaphone", "image": FORMER_IMAGE, "env": variables}
        return {
            "kind": "Pod",
            "metadata": self._metadata(name, labels),
            "spec": {"containers": [container]},
        }

    def _service(self, name: str, label: str) -> Object:
        return {
            "kind": "Service",
            "metadata": self._metadata(name, {"svc-megaphone-cluster": NAME}),
            "spec": {
                "selector": {"megaphone-cluster": NAME, label: "ON"},
                "ports": [{"name": "http", "port": 3000}],
            },
        }

    def _metadata(self, name: str, labels: dict[str, str]) -> Object:
        return {"name": name, "labels": labels, "ownerReferences": [self._owner]}


@dataclass(slots=True)
class FormerChannel:
    """A channel of a former pod, with a writer and a reader at the services of its agent."""

    session: aiohttp.ClientSession
    write_url: str
    read_url: str
    written: list[int] = field(default_factory=list)
    read: list[int] = field(default_factory=list)

    async def write_until(self, over: asyncio.Event) -> None:
        while not over.is_set():
            number = len(self.written)
            async with self.session.post(self.write_url, json=number) as answer:
                assert answer.status == 201, await answer.text()
            self.written.append(number)
            await asyncio.sleep(PAUSE_S)

    async def read_all(self, over: asyncio.Event) -> None:
        while not over.is_set() or len(self.read) < len(self.written):
            async with self.session.get(self.read_url) as answer:
                assert answer.status == 200, await answer.text()
                async for line in answer.content:
                    if line.strip():
                        self.read.append(json.loads(line)["body"])
                    if over.is_set() and len(self.read) == len(self.written):
                        return


@asynccontextmanager
async def former_channels(demo: Demo) -> AsyncIterator[list[FormerChannel]]:
    """Use channels of the former pods within this context, and read all of them at its end."""
    over = asyncio.Event()
    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
        channels = [await former_channel(demo, session) for _ in range(CHANNELS)]
        for channel in channels:
            group.create_task(channel.write_until(over))
            group.create_task(channel.read_all(over))
        try:
            yield channels
        finally:
            over.set()


async def former_channel(demo: Demo, session: aiohttp.ClientSession) -> FormerChannel:
    async with session.post(f"{demo.url}/create") as answer:
        made = await answer.json()
    assert made["agentName"] == USED
    write, read = (
        f"http://{demo.host_of(f'svc-{NAME}-{USED}-{way}')}:3000" for way in ("write", "read")
    )
    producer, consumer = made["producerAddress"], made["consumerAddress"]
    return FormerChannel(session, f"{write}/write/{producer}/s", f"{read}/read/{consumer}")


async def test_a_cluster_of_the_former_operator_is_taken_over(api: Api, kubectl: Kubectl) -> None:
    await asyncio.to_thread(kubectl, "apply", "--filename=-", text=json.dumps(DEFINITION))
    wait = ("wait", "--for=condition=Established", "crd/megaphones.d71.dev", "--timeout=30s")
    await asyncio.to_thread(kubectl, *wait)
    made = await api.create(path_of("namespaces"), {"metadata": {"generateName": "former-"}})
    demo = Demo(api, kubectl, name_of(made), NAME)
    former = Former(api, demo.namespace)
    await former.leave_cluster()
    await until(lambda: is_served(demo), WITHIN_S)
    async with former_channels(demo) as channels:
        await asyncio.to_thread(install_operator, kubectl)
        await until(lambda: is_degraded(demo, "ImageTooOld"), WITHIN_S)
        assert not (await demo.resource())["metadata"].get("finalizers")
        assert await former_pods(demo) == len(AGENTS)
        began = time.monotonic()
        await asyncio.to_thread(demo.change, image=OLD_IMAGE)
        await until(lambda: has_ready_nodes(demo), WITHIN_S)
        LINES.append(f"takeover: new nodes are ready after {time.monotonic() - began:.1f} s")
        await until(lambda: has_former_pods(demo, 1), WITHIN_S)  # one had no channels
        async with load(demo.url, demo.grpc_target, 20) as clients:
            clients.begin()
            assert await is_degraded(demo, "LegacyNodes")
        clients.judge("takeover: channels of new nodes, beside a former pod with channels")
    for channel in channels:
        assert channel.read == channel.written
    await asyncio.to_thread(demo.change, legacy={"deadlineSeconds": 1})
    await until(lambda: has_former_pods(demo, 0), WITHIN_S)
    await demo.settled()
    written = sum(len(channel.written) for channel in channels)
    LINES.append(f"takeover: {written} events of channels of a former pod, each read once in order")
    await go_back(demo, former)
    await former.leave()
    await api.delete(path_of("megaphones", demo.namespace, NAME))
    await api.delete(path_of("namespaces", None, demo.namespace))


def way_back() -> list[list[str]]:
    """Return the commands with which the page leads back, each without `kubectl`."""
    page = (ROOT / "docs" / "kubernetes-migration.md").read_text().partition("## Go back")[2]
    lines = re.findall(r"^ *kubectl (.*)$", page, re.MULTILINE)
    return [shlex.split(line.replace("megaphone-demo", NAME)) for line in lines]


async def go_back(demo: Demo, former: Former) -> None:
    """Follow the page, and let the former operator run one pass."""
    stop, *commands = way_back()
    await asyncio.to_thread(demo.kubectl, *stop)
    await until(lambda: has_no_operator(demo.api), WITHIN_S)
    for command in commands:
        await asyncio.to_thread(demo.call, *command)
    assert (await demo.resource())["spec"]["image"] == FORMER_IMAGE
    assert await former.run_pass() == []
    await until(lambda: is_served(demo), WITHIN_S)
    async with former_channels(demo) as channels:
        await asyncio.sleep(4 * PAUSE_S)
    for channel in channels:
        assert channel.written
        assert channel.read == channel.written
    LINES.append("the way back: former pods serve new channels at the services of before")
    start = ("scale", "deployment", OPERATOR, f"--namespace={OPERATOR}", "--replicas=2")
    await asyncio.to_thread(demo.kubectl, *start)
    await asyncio.to_thread(install_operator, demo.kubectl)


async def has_no_operator(api: Api) -> bool:
    return await api.items(path_of("pods", OPERATOR)) == []


async def is_served(demo: Demo) -> bool:
    """Return whether the former cluster answers."""
    async with aiohttp.ClientSession() as session, session.get(f"{demo.url}/livez") as answer:
        return answer.status < 500


async def is_degraded(demo: Demo, reason: str) -> bool:
    return (await demo.condition("Degraded")).get("reason") == reason


async def has_ready_nodes(demo: Demo) -> bool:
    resource = await demo.resource()
    return bool(resource["status"].get("readyReplicas") == len(AGENTS))


async def former_pods(demo: Demo) -> int:
    """Return how many former pods are left."""
    pods = await demo.api.items(path_of("pods", demo.namespace), labelSelector="megaphone-node")
    return len(pods)


async def has_former_pods(demo: Demo, count: int) -> bool:
    return await former_pods(demo) == count
