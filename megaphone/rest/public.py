"""The routes on the public HTTP port: those of clients, of supervisors and of the pages."""

from collections.abc import Awaitable, Callable, Iterable

from aiohttp import web

from megaphone.core.broker import Broker
from megaphone.model import AgentInfo
from megaphone.rest.callers import Callers
from megaphone.rest.channels import ChannelApi
from megaphone.rest.pages import PageApi
from megaphone.rest.probes import ProbeApi
from megaphone.rest.resource import ResourceMetadata


def public_routes(
    broker: Broker,
    callers: Callers,
    metrics: Callable[[], Awaitable[bytes]],
    agents: Callable[[], Awaitable[Iterable[AgentInfo]]],
    *,
    with_pages: bool,
    with_ops: bool = True,
    resource: ResourceMetadata | None = None,
) -> list[web.RouteDef]:
    """Return all routes. `metrics` and `agents` are as `ProbeApi` needs them. Without `with_ops`,
    the probes that are only for operators have a port of their own."""
    probes = ProbeApi(broker, callers, metrics, agents).routes(for_everybody=not with_ops)
    routes = [*ChannelApi(broker, callers).routes(), *probes]
    pages = PageApi(routes).routes() if with_pages else []
    return [*routes, *pages, *(() if resource is None else resource.routes())]
