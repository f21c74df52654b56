"""A broker with a gate and a road before it, for one test or one run."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from megaphone.app import App, running
from megaphone.model import AgentMode
from tests.clients.drivers.kinds import Kind
from tests.clients.gates import Gate, GrpcGate, HttpGate
from tests.clients.roads import Road, Weather
from tests.clients.troubles import Plan
from tests.support.faces import HttpFace, http_face
from tests.support.settings import fast_settings


@dataclass(frozen=True, slots=True)
class Stage:
    """The way from a client to a broker."""

    scheme: str
    road: Road
    gate: Gate
    app: App
    face: HttpFace
    """A client of the test's own, which goes to the broker directly."""

    @property
    def url(self) -> str:
        """The URL that the client under test opens."""
        return f"{self.scheme}://127.0.0.1:{self.road.port}"

    @property
    def plan(self) -> Plan:
        return self.gate.plan

    @property
    def weather(self) -> Weather:
        return self.road.weather

    def clear_up(self) -> None:
        """Let everything pass from now on."""
        self.plan.clear()
        self.weather.clear()

    async def drain_to(self, app: App) -> None:
        """Move all channels of the broker to another one. From then on it says that they moved."""
        async for _ in self.app.admin.drain(f"http://127.0.0.1:{app.grpc_port}"):
            pass

    def turn_to(self, app: App) -> None:
        """Lead to another broker from now on, as a proxy does when an agent has moved."""
        self.gate.to_port = port_of(app, self.scheme)
        self.road.cut()


def port_of(app: App, scheme: str) -> int:
    return app.grpc_port if scheme == "grpc" else app.http_port


def gate_to(port: int, scheme: str, plan: Plan) -> Gate:
    return GrpcGate(port, plan) if scheme == "grpc" else HttpGate(port, plan)


@asynccontextmanager
async def way_to(
    port: int, scheme: str, plan: Plan | None = None, weather: Weather | None = None
) -> AsyncIterator[tuple[Road, Gate]]:
    """Open a way to a port within this context."""
    gate = gate_to(port, scheme, plan or Plan())
    await gate.start()
    road = Road(gate.port, weather)
    await road.open()
    try:
        yield road, gate
    finally:
        await road.aclose()
        await gate.aclose()


def allowing(kind: Kind) -> dict[str, Any]:
    """Return the settings of a broker that its clients need: pages are of another origin."""
    return {} if kind.may_write else {"cors_allow_origin": ("*",)}


@asynccontextmanager
async def other_node(**settings: Any) -> AsyncIterator[App]:
    """Run another broker, to which channels may move."""
    async with running(fast_settings(agent={"other": AgentMode.MASTER}, **settings)) as app:
        yield app


@asynccontextmanager
async def stage(
    kind: Kind, plan: Plan | None = None, weather: Weather | None = None, **settings: Any
) -> AsyncIterator[Stage]:
    """Run a broker with these settings, and open a way to it, within this context."""
    async with AsyncExitStack() as stack:
        app = await stack.enter_async_context(running(fast_settings(**allowing(kind), **settings)))
        way = way_to(port_of(app, kind.scheme), kind.scheme, plan, weather)
        road, gate = await stack.enter_async_context(way)
        face = await stack.enter_async_context(http_face(app))
        yield Stage(kind.scheme, road, gate, app, face)
