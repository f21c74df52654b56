"""`megaphone.v1.AdminService`: the calls of operators, translated to the core and back."""

from contextlib import aclosing
from typing import Any

import grpc

from megaphone.core.admin import Admin
from megaphone.core.listing import Asked
from megaphone.rpc.answers import joined
from megaphone.wire import protobuf as wire
from megaphone_api.v1 import admin_pb2 as pb
from megaphone_api.v1.admin_pb2_grpc import AdminServiceServicer

Context = grpc.aio.ServicerContext[Any, Any]


class AdminServicer(AdminServiceServicer):
    def __init__(self, admin: Admin) -> None:
        self._admin = admin

    async def ListAgents(
        self, request: pb.ListAgentsRequest, context: Context
    ) -> pb.ListAgentsResponse:
        return wire.agents(await self._admin.list_agents())

    async def AddAgent(self, request: pb.AddAgentRequest, context: Context) -> pb.AddAgentResponse:
        await self._admin.add_agent(request.name)
        return pb.AddAgentResponse()

    async def PromoteAgent(
        self, request: pb.PromoteAgentRequest, context: Context
    ) -> pb.PromoteAgentResponse:
        self._admin.promote_agent(request.name)
        return pb.PromoteAgentResponse()

    async def PipeAgent(
        self, request: pb.PipeAgentRequest, context: Context
    ) -> pb.PipeAgentResponse:
        await self._admin.pipe_agent(request.name, request.target)
        return pb.PipeAgentResponse()

    async def UnpipeAgent(
        self, request: pb.UnpipeAgentRequest, context: Context
    ) -> pb.UnpipeAgentResponse:
        target = wire.optional(request.target)
        await self._admin.unpipe_agent(request.name, target, force=request.force)
        return pb.UnpipeAgentResponse()

    async def RemoveAgent(
        self, request: pb.RemoveAgentRequest, context: Context
    ) -> pb.RemoveAgentResponse:
        await self._admin.remove_agent(request.name, force=request.force)
        return pb.RemoveAgentResponse()

    async def ListChannels(  # type: ignore[override]
        self, request: pb.ListChannelsRequest, context: Context
    ) -> bytes:
        limit = request.limit if request.HasField("limit") else None
        agent, sort = wire.optional(request.agent), wire.optional(request.sort)
        if request.blocked or sort or request.details:
            asked = Asked(request.skip, limit, agent, sort, request.blocked)
            return await joined(wire.shown_channels(await self._admin.show_channels(asked)))
        addresses = await self._admin.list_channels(request.skip, limit, agent)
        return await joined(wire.channels(addresses))

    async def GetChannel(
        self, request: pb.GetChannelRequest, context: Context
    ) -> pb.GetChannelResponse:
        info = await self._admin.show_channel(request.channel)
        return pb.GetChannelResponse(channel=wire.channel_info(info))

    async def DisposeChannel(
        self, request: pb.DisposeChannelRequest, context: Context
    ) -> pb.DisposeChannelResponse:
        await self._admin.dispose(request.address)
        return pb.DisposeChannelResponse()

    # This is a coroutine that writes, as `ChannelServicer.Read` is. The generator of a lost client
    # would hang at its `yield`, but the drain must end when its call ends.
    async def Drain(self, request: pb.DrainRequest, context: Context) -> None:  # type: ignore[override]
        async with aclosing(self._admin.drain(request.target)) as steps:
            async for progress in steps:
                await context.write(wire.drained(progress))

    async def Watch(self, request: pb.WatchRequest, context: Context) -> None:  # type: ignore[override]
        watching = self._admin.watch(
            request.interval_ms / 1000 if request.HasField("interval_ms") else None,
            request.limit if request.HasField("limit") else None,
            wire.optional(request.sort),
        )
        async with aclosing(watching) as views:
            async for view in views:
                await context.write(wire.node_view(view))
