"""What a node that forwards an agent asks its targets about the channels that are on both sides.

It does not know which of them are read elsewhere, nor how far. So it asks every target before it
lets a channel expire, and while writers wait for room in one.
"""

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice

from megaphone.cluster.peer import Connection
from megaphone.cluster.ports import Replicable
from megaphone.core.addresses import ConsumerAddress
from megaphone.errors import ChannelNotFound, MegaphoneError

log = logging.getLogger(__name__)

CHECK_S = 1.0
"""How often is looked for channels that should go."""
BLOCKED_CHECK_S = 0.1
"""How often is asked how far channels were read in which writers wait for room."""
ASKED_AT_ONCE = 1000


async def unread_anywhere(
    replication: Replicable, agent: str, targets: Sequence[Connection]
) -> list[bytes]:
    """Return the channels of an agent that are overdue here and in use at none of its targets.

    Where a target does not answer, they stay for another life.
    """
    unread: list[bytes] = []
    while addresses := await replication.expired_but_kept(agent, ASKED_AT_ONCE):
        try:
            answers = await asyncio.gather(*(target.in_use(addresses) for target in targets))
        except MegaphoneError as error:
            log.warning("agent %s: its channels cannot expire now: %s", agent, error)
            break
        gone = set(addresses).difference(*answers)
        unread += [ConsumerAddress.parse(address).channel_id for address in gone]
    return unread


async def make_room(replication: Replicable, agent: str, targets: Sequence[Connection]) -> None:
    """Count what readers got at the targets of an agent as delivered, where writers wait for room.

    A target that does not answer is passed over.
    """
    for addresses in batches(await replication.blocked(agent)):
        for answer in await asyncio.gather(
            *(target.positions(addresses) for target in targets), return_exceptions=True
        ):
            if isinstance(answer, MegaphoneError):
                continue
            if isinstance(answer, BaseException):
                raise answer
            for address, event_id in answer.items():
                if address in addresses:
                    with suppress(ChannelNotFound):
                        await replication.advance(
                            ConsumerAddress.parse(address).channel_id, event_id
                        )


def batches(addresses: Sequence[str]) -> Iterator[list[str]]:
    rest = iter(addresses)
    while batch := list(islice(rest, ASKED_AT_ONCE)):
        yield batch
