"""Trace contexts over gRPC, where it is not like HTTP."""

from megaphone_api.v1 import channels_pb2 as pb
from tests.parity.test_traces import CONTEXT, TRACED
from tests.support.faces import GrpcFace, read_all


async def test_each_published_event_has_a_context_of_its_own(grpc: GrpcFace) -> None:
    channel = await grpc.create()
    other = CONTEXT.replace("b7", "c7")
    writes = [
        pb.WriteRequest(
            producer_address=channel.producer, stream_id="s", body=b"1", traceparent=given
        )
        for given in (CONTEXT, "", other, "nonsense")
    ]
    [answer] = await grpc.traced(CONTEXT).publish(writes)
    assert all(result.event_id for result in answer.results)
    events = await read_all(grpc, channel.consumer, TRACED)
    assert [event.traceparent for event in events] == [CONTEXT, None, other, None]


async def test_the_field_of_a_write_comes_before_its_metadata(grpc: GrpcFace) -> None:
    channel = await grpc.create()
    other = CONTEXT.replace("b7", "c7")
    request = pb.WriteRequest(
        producer_address=channel.producer, stream_id="s", body=b"1", traceparent=other
    )
    metadata = grpc.traced(CONTEXT).metadata(channel.producer)
    await grpc.stub.Write(request, metadata=metadata)
    [event] = await read_all(grpc, channel.consumer, TRACED)
    assert event.traceparent == other
