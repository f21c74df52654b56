"""Tools find the schema by reflection, by the queries that grpcurl, ghz and others send."""

from collections.abc import Sequence

import grpc as grpcio
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha import reflection_pb2 as messages

from tests.support.faces import GrpcFace

V1 = "grpc.reflection.v1.ServerReflection"
V1ALPHA = "grpc.reflection.v1alpha.ServerReflection"
CHANNEL_SERVICE = "megaphone.v1.ChannelService"
VERSIONS = pytest.mark.parametrize("version", [V1, V1ALPHA])


async def reflect(
    face: GrpcFace, version: str, *requests: messages.ServerReflectionRequest
) -> list[messages.ServerReflectionResponse]:
    """Ask for several things in one call, as tools do."""
    ask = face.channel.stream_stream(
        f"/{version}/ServerReflectionInfo",
        request_serializer=messages.ServerReflectionRequest.SerializeToString,
        response_deserializer=messages.ServerReflectionResponse.FromString,
    )
    call = ask(iter(requests), timeout=5)
    answers = [answer async for answer in call]
    assert [answer.original_request for answer in answers] == list(requests)
    return answers


def symbols(*names: str) -> list[messages.ServerReflectionRequest]:
    return [messages.ServerReflectionRequest(file_containing_symbol=name) for name in names]


def files(answer: messages.ServerReflectionResponse) -> list[FileDescriptorProto]:
    found = answer.file_descriptor_response.file_descriptor_proto
    return [FileDescriptorProto.FromString(file) for file in found]


def services(found: Sequence[FileDescriptorProto]) -> set[str]:
    return {f"{file.package}.{service.name}" for file in found for service in file.service}


@VERSIONS
async def test_both_versions_list_the_same_services(grpc: GrpcFace, version: str) -> None:
    [answer] = await reflect(grpc, version, messages.ServerReflectionRequest(list_services="*"))
    assert {service.name for service in answer.list_services_response.service} == {
        CHANNEL_SERVICE,
        "megaphone.SyncService",
        "grpc.health.v1.Health",
        V1,
        V1ALPHA,
    }


@VERSIONS
@pytest.mark.parametrize(
    ("symbol", "service"),
    [
        (CHANNEL_SERVICE, CHANNEL_SERVICE),
        (f"{CHANNEL_SERVICE}.Write", CHANNEL_SERVICE),
        ("megaphone.v1.WriteRequest", CHANNEL_SERVICE),
        ("megaphone.SyncService.ForwardEvents", "megaphone.SyncService"),
        ("grpc.health.v1.Health.Check", "grpc.health.v1.Health"),
        (V1, V1),
        (f"{V1}.ServerReflectionInfo", V1),
        ("grpc.reflection.v1.ServerReflectionRequest", V1),
        (f"{V1ALPHA}.ServerReflectionInfo", V1ALPHA),
    ],
)
async def test_a_symbol_is_found_with_all_files_that_it_needs(
    grpc: GrpcFace, version: str, symbol: str, service: str
) -> None:
    [answer] = await reflect(grpc, version, *symbols(symbol))
    found = files(answer)
    assert service in services(found)
    names = {file.name for file in found}
    assert {needed for file in found for needed in file.dependency} <= names


@VERSIONS
async def test_every_file_of_an_answer_can_be_asked_for_by_its_name(
    grpc: GrpcFace, version: str
) -> None:
    for answer in await reflect(grpc, version, *symbols(CHANNEL_SERVICE, V1)):
        for file in files(answer):
            request = messages.ServerReflectionRequest(file_by_filename=file.name)
            [again] = await reflect(grpc, version, request)
            assert file in files(again)


@VERSIONS
@pytest.mark.parametrize(
    "symbol",
    ["", "Write", "megaphone.v9.Nothing", f"{CHANNEL_SERVICE}.Nothing", f"{V1}.Nothing", "grpc."],
)
async def test_what_is_not_there_is_not_found(grpc: GrpcFace, version: str, symbol: str) -> None:
    [answer] = await reflect(grpc, version, *symbols(symbol))
    assert answer.error_response.error_code == grpcio.StatusCode.NOT_FOUND.value[0]
