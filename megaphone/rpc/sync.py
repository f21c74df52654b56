"""`megaphone.SyncService`: the calls with which other nodes replicate channels to this one."""

from collections.abc import AsyncIterator
from typing import Any

import grpc

from megaphone.cluster.ports import Incoming, IncomingPipe
from megaphone.errors import BadRequest
from megaphone.wire import sync as wire
from megaphone_api import sync_pb2 as pb
from megaphone_api.sync_pb2_grpc import SyncServiceServicer

Context = grpc.aio.ServicerContext[Any, Any]


class SyncServicer(SyncServiceServicer):
    def __init__(self, incoming: Incoming) -> None:
        self._incoming = incoming

    async def ForwardEvents(
        self, requests: AsyncIterator[pb.SyncRequest], context: Context
    ) -> pb.SyncReply:
        pipe: IncomingPipe | None = None
        try:
            async for request in requests:
                if pipe is None:
                    pipe = await self._opened(request)
                    await context.send_initial_metadata(((wire.EXTENSIONS_KEY, "1"),))
                elif request.HasField("pipe_agent_start"):
                    raise BadRequest("a second PipeAgentStart: a stream replicates one agent")
                elif request.HasField("pipe_agent_end"):
                    pipe.end()
                    break
                else:
                    await pipe.apply(wire.change_of(request))
        finally:
            if pipe is not None:
                pipe.close()
        return pb.SyncReply(message=wire.REPLY)

    async def FindChannelsInUse(
        self, request: pb.FindChannelsInUseRequest, context: Context
    ) -> pb.FindChannelsInUseReply:
        usage = await self._incoming.usage(request.channel_ids)
        return wire.in_use(usage.in_use, usage.cursors)

    async def _opened(self, request: pb.SyncRequest) -> IncomingPipe:
        if not request.HasField("pipe_agent_start"):
            raise BadRequest("the first message must be a PipeAgentStart")
        start = request.pipe_agent_start
        return await self._incoming.open(start.agent_id, start.key, start.source_id)
