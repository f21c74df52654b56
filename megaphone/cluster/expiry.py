"""The end of channels that are on two nodes: once nobody reads them on either.

A node that forwards an agent holds its channels, since it does not know who reads them elsewhere.
So it asks, before a channel goes: every node that it forwards the agent to.
"""

import asyncio
import logging
from collections.abc import Iterator, Sequence
from itertools import islice

from megaphone.cluster.target import Connection
from megaphone.core.addresses import ConsumerAddress
from megaphone.core.ports import Store
from megaphone.errors import MegaphoneError

log = logging.getLogger(__name__)

CHECK_S = 1.0
"""How often is looked for channels that should go."""
ASKED_AT_ONCE = 1000


async def unread_anywhere(store: Store, agent: str, targets: Sequence[Connection]) -> list[bytes]:
    """Return the channels of an agent that are overdue here and in use at none of its targets.

    Where a target does not answer, they stay for another life.
    """
    unread: list[bytes] = []
    for addresses in batches(store.pop_overdue(agent)):
        try:
            answers = await asyncio.gather(*(target.in_use(addresses) for target in targets))
        except MegaphoneError as error:
            log.warning("agent %s: its channels live on: %s", agent, error)
            break
        gone = set(addresses).difference(*answers)
        unread += [ConsumerAddress.parse(address).channel_id for address in gone]
    return unread


def batches(addresses: Sequence[str]) -> Iterator[list[str]]:
    rest = iter(addresses)
    while batch := list(islice(rest, ASKED_AT_ONCE)):
        yield batch
