"""Counts the members of a protobuf message before it is decoded.

A megabyte can be half a million empty messages, which take forty megabytes and 20 ms to decode. As
bytes they are decoded in a fraction of that.
"""

from typing import Any

from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

REPEATED_FIELDS = (1, 2)
"""Where members are in the requests of ChannelService."""
TAGS = tuple(bytes([number << 3 | 2]) for number in REPEATED_FIELDS)
LEAST_MEMBER_BYTES = 2


def has_more_members(message: bytes, most: int) -> bool:
    """Whether a message has more than `most` members, in all of its repeated fields together.

    Raises: DecodeError, perhaps, when it is no message at all.
    """
    if len(message) <= LEAST_MEMBER_BYTES * most or sum(map(message.count, TAGS)) <= most:
        return False
    members = _Members.FromString(message)
    return sum(len(getattr(members, name)) for name in _NAMES) > most


_NAMES = [f"members_{number}" for number in REPEATED_FIELDS]


def _members_class() -> Any:
    """Make the class of messages whose repeated fields hold bytes, whatever is in them."""
    file = FileDescriptorProto(name="members.proto", package="megaphone.wire", syntax="proto3")
    kind = file.message_type.add(name="Members")
    for number, name in zip(REPEATED_FIELDS, _NAMES, strict=True):
        kind.field.add(
            name=name,
            number=number,
            label=FieldDescriptorProto.LABEL_REPEATED,
            type=FieldDescriptorProto.TYPE_BYTES,
        )
    pool = DescriptorPool()
    pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName("megaphone.wire.Members"))


_Members = _members_class()
