"""`megaphone.SyncService`: other nodes feed their channels to this one."""

from collections.abc import AsyncIterator
from typing import Any

import grpc

from megaphone.core.feeds import Feed, Feeds
from megaphone.errors import BadRequest
from megaphone.wire import sync as wire
from megaphone_api import sync_pb2 as pb
from megaphone_api.sync_pb2_grpc import SyncServiceServicer

Context = grpc.aio.ServicerContext[Any, Any]


class SyncServicer(SyncServiceServicer):
    def __init__(self, feeds: Feeds) -> None:
        self._feeds = feeds

    async def ForwardEvents(
        self, requests: AsyncIterator[pb.SyncRequest], context: Context
    ) -> pb.SyncReply:
        feed: Feed | None = None
        try:
            async for request in requests:
                if feed is None:
                    feed = await self._opened(request)
                    await context.send_initial_metadata(((wire.EXTENSIONS_KEY, "1"),))
                elif request.HasField("pipe_agent_start"):
                    raise BadRequest("a second PipeAgentStart: a stream feeds one agent")
                elif request.HasField("pipe_agent_end"):
                    feed.end()
                    break
                else:
                    await feed.apply(wire.change_of(request))
        finally:
            if feed is not None:
                feed.close()
        return pb.SyncReply(message=wire.REPLY)

    async def FindChannelsInUse(
        self, request: pb.FindChannelsInUseRequest, context: Context
    ) -> pb.FindChannelsInUseReply:
        in_use = await self._feeds.in_use(request.channel_ids)
        positions = await self._feeds.positions(request.channel_ids)
        return wire.in_use(in_use, positions)

    async def _opened(self, request: pb.SyncRequest) -> Feed:
        if not request.HasField("pipe_agent_start"):
            raise BadRequest("the first message must be a PipeAgentStart")
        start = request.pipe_agent_start
        return await self._feeds.open(start.agent_id, start.key, start.source_id)
