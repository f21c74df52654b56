"""The spans of a stream of writes, which only gRPC has."""

from megaphone_api.v1 import channels_pb2 as pb
from tests.parity.test_spans import CONTEXT, SPAN_ID, TRACED, first, spans
from tests.support.faces import GrpcFace, read_all
from tests.support.otlp import Collector

__all__ = ["first", "spans"]

OTHER = f"00-{'1' * 32}-{SPAN_ID}-01"


def write(address: str, traceparent: str) -> pb.WriteRequest:
    return pb.WriteRequest(
        producer_address=address, stream_id="s", body=b"1", traceparent=traceparent
    )


async def test_the_events_of_a_message_have_a_span_for_each_context(
    grpc: GrpcFace, spans: Collector
) -> None:
    channel, gone = await grpc.create(), await grpc.create()
    await grpc.dispose(gone.producer)
    [answer] = await grpc.publish(
        [
            write(channel.producer, CONTEXT),
            write(channel.producer, CONTEXT),
            write(channel.producer, ""),
            write(gone.producer, OTHER),
            write(channel.producer, OTHER),
        ]
    )
    events = await read_all(grpc, channel.consumer, TRACED)
    await spans.has(sends=2, receives=1)
    one, other = sorted(spans.named("send"), key=lambda span: span.trace_id)
    assert [event.traceparent for event in events] == [
        one.context,
        one.context,
        None,
        other.context,
    ]
    assert (one.attributes["messaging.batch.message_count"], one.error) == (2, "")
    assert (other.attributes["messaging.batch.message_count"], other.error) == (2, "NOT_FOUND")
    [receive] = spans.named("receive")
    assert receive.links == [(span.trace_id, span.span_id) for span in (one, other)]
    assert receive.linked_messages == [answer.results[0].event_id, answer.results[4].event_id]
    assert receive.attributes["messaging.batch.message_count"] == 4
