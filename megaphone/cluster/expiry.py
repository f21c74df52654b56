"""Asks the targets of an agent how readers use its channels there.

A source does not know whether a channel is read at a target, nor how far. So it asks every target
before it lets a channel expire, and while writers wait in a channel for a free place.
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
"""How often a source looks for channels that are past their deadline."""
BLOCKED_CHECK_S = 0.1
"""How often a source asks its targets which events their readers got. It asks only about channels
in which writers wait."""
ASKED_AT_ONCE = 1000
"""How many channels one call to a target asks about."""


async def unused_channels(
    replication: Replicable, agent: str, targets: Sequence[Connection]
) -> list[bytes]:
    """Return the ids of channels that are past their deadline here and that no target uses.

    If a target does not answer about a channel, the channel lives for another TTL.
    """
    unread: list[bytes] = []
    while addresses := await replication.expired_but_kept(agent, ASKED_AT_ONCE):
        try:
            answers = await asyncio.gather(*(target.in_use(addresses) for target in targets))
        except MegaphoneError as error:
            log.warning("channels cannot expire now: %s", error, extra={"agent": agent})
            break
        gone = set(addresses).difference(*answers)
        unread += [ConsumerAddress.parse(address).channel_id for address in gone]
    return unread


async def free_places(replication: Replicable, agent: str, targets: Sequence[Connection]) -> None:
    """Deliver, in each channel in which writers wait, the events that readers got at the targets.

    A target that does not answer is ignored.
    """
    for addresses in batches(await replication.blocked(agent)):
        for answer in await asyncio.gather(
            *(target.cursors(addresses) for target in targets), return_exceptions=True
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
    """Divide addresses into lists of at most `ASKED_AT_ONCE`."""
    rest = iter(addresses)
    while batch := list(islice(rest, ASKED_AT_ONCE)):
        yield batch
