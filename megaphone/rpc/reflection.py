"""Serves gRPC reflection, version 1 and its predecessor v1alpha, so that tools need no schema.

The package grpcio-reflection has v1alpha only. Both have the same messages under two names. It also
finds no service by the name of one of its methods, which ghz and other tools ask for.
"""

import functools
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf import text_format
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import Default, DescriptorPool
from grpc_reflection.v1alpha import reflection, reflection_pb2
from grpc_reflection.v1alpha.reflection_pb2 import (
    ServerReflectionRequest,
    ServerReflectionResponse,
)

V1ALPHA = reflection.SERVICE_NAME
PACKAGE = V1ALPHA.rpartition(".")[0]
PACKAGE_OF_V1 = PACKAGE.replace("v1alpha", "v1")
V1 = V1ALPHA.replace(PACKAGE, PACKAGE_OF_V1)
FILE_OF_V1 = reflection_pb2.DESCRIPTOR.name.replace("reflection/v1alpha/", "reflection/v1/")
METHOD = "ServerReflectionInfo"


def serve_reflection(server: grpc.aio.Server, services: Sequence[str]) -> None:
    """Serve reflection for some services, and for reflection itself."""
    servicer = Reflection((*services, V1ALPHA, V1))
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.answer,
        request_deserializer=ServerReflectionRequest.FromString,
        response_serializer=ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(name, {METHOD: handler}) for name in (V1ALPHA, V1)]
    )


class Reflection:
    """Answers requests of both versions."""

    def __init__(self, services: Sequence[str]) -> None:
        pool = pool_of_v1()
        self._schema = Answering(reflection.aio.ReflectionServicer(services), Default())
        self._v1 = Answering(reflection.aio.ReflectionServicer((), pool), pool)

    async def answer(
        self, requests: AsyncIterator[ServerReflectionRequest], context: Any
    ) -> AsyncIterator[ServerReflectionResponse]:
        async for request in requests:
            answering = self._v1 if self._is_about_v1(request) else self._schema
            async for answer in answering.answers(request, context):
                yield answer

    def _is_about_v1(self, request: ServerReflectionRequest) -> bool:
        return request.file_by_filename == FILE_OF_V1 or request.file_containing_symbol.startswith(
            f"{PACKAGE_OF_V1}."
        )


@dataclass(frozen=True, slots=True)
class Answering:
    """Answers requests about what is in one pool."""

    servicer: reflection.aio.ReflectionServicer
    pool: DescriptorPool

    async def answers(
        self, request: ServerReflectionRequest, context: Any
    ) -> AsyncIterator[ServerReflectionResponse]:
        asked = ServerReflectionRequest()
        asked.CopyFrom(request)
        if service := self._service_of(request.file_containing_symbol):
            asked.file_containing_symbol = service
        answers: Any = self.servicer.ServerReflectionInfo(only(asked), context)
        async for answer in answers:
            answer.original_request.CopyFrom(request)
            yield answer

    def _service_of(self, symbol: str) -> str | None:
        """Return the service whose method this is, if it is one. It is in the same file."""
        service, _, method = symbol.rpartition(".")
        try:
            found = self.pool.FindServiceByName(service)
        except KeyError:
            return None
        return service if method in found.methods_by_name else None


async def only(request: ServerReflectionRequest) -> AsyncIterator[ServerReflectionRequest]:
    yield request


@functools.cache
def pool_of_v1() -> DescriptorPool:
    """Return a pool with nothing but the schema of version 1, the same each time.

    It is not the default pool, to which another library may add version 1.
    """
    pool = DescriptorPool()
    pool.Add(file_of_v1())
    return pool


def file_of_v1() -> FileDescriptorProto:
    """Return the schema of version 1: that of v1alpha in another package."""
    file = FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(file)
    text = text_format.MessageToString(file)
    text = text.replace(f"{PACKAGE}.", f"{PACKAGE_OF_V1}.").replace(
        f'"{PACKAGE}"', f'"{PACKAGE_OF_V1}"'
    )
    text = text.replace("reflection/v1alpha/", "reflection/v1/")
    return text_format.Parse(text, FileDescriptorProto())
