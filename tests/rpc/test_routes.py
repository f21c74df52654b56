"""The HTTP routes in the schema are those that the HTTP face serves to clients."""

import re
from typing import Any

from aiohttp import web
from google.api import annotations_pb2

from megaphone.rest.channels import ChannelApi
from megaphone_api.v1 import channels_pb2 as pb


def routes_of_the_schema() -> set[tuple[str, str]]:
    routes = set()
    for method in pb.DESCRIPTOR.services_by_name["ChannelService"].methods:
        rule = method.GetOptions().Extensions[annotations_pb2.http]
        if verb := rule.WhichOneof("pattern"):
            routes.add((verb.upper(), getattr(rule, verb)))
    return routes


def routes_served() -> set[tuple[str, str]]:
    no_broker: Any = None  # since nobody calls the routes
    app = web.Application()
    app.add_routes(ChannelApi(no_broker, no_broker).routes())
    return {
        (route.method, route.resource.canonical)
        for route in app.router.routes()
        if route.resource is not None and route.method != "HEAD"
    }


def test_the_schema_names_the_routes_that_are_served() -> None:
    assert routes_of_the_schema() == routes_served()


def test_every_variable_of_a_route_is_a_field_of_the_request() -> None:
    for method in pb.DESCRIPTOR.services_by_name["ChannelService"].methods:
        rule = method.GetOptions().Extensions[annotations_pb2.http]
        path = getattr(rule, rule.WhichOneof("pattern") or "", "")
        for variable in re.findall(r"\{(\w+)\}", path):
            assert variable in method.input_type.fields_by_name
