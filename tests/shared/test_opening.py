"""A read that a store in Redis is opening is none that a reload finds among the open ones."""

import asyncio

import pytest

from megaphone.access.tokens import digest_of
from megaphone.core.access import Action, Peer
from megaphone.errors import Unauthenticated
from megaphone.model import ReadOptions
from megaphone.settings import Auth, Token
from tests.shared.conftest import Nodes

TOKENS = {name: f"mgp_{name * 43}" for name in ("a", "b")}
AUTH = Auth(
    require=tuple(Action),
    tokens={
        name: Token(sha256=digest_of(text), actions=tuple(Action)) for name, text in TOKENS.items()
    },
)
LONG = ReadOptions(wait_s=50)


@pytest.mark.settings(auth=AUTH)
async def test_a_caller_who_is_revoked_while_the_store_opens_a_read_is_refused(app: Nodes) -> None:
    node = app.apps[0]
    revoked, other = [
        await node.doorkeeper.admit(f"Bearer {text}", Peer("127.0.0.1")) for text in TOKENS.values()
    ]
    channel = await node.broker.create(revoked)
    opening = asyncio.create_task(node.broker.open_read(revoked, channel.consumer_address, LONG))
    await asyncio.sleep(0)
    assert not opening.done()
    revoked.revoke()
    nobody = node.doorkeeper.known(None)
    assert nobody is not None
    node.broker.end_refused_reads(nobody)
    with pytest.raises(Unauthenticated):
        await opening
    assert app.metrics.reads_open == 0
    async with asyncio.timeout(10):
        reader = await node.broker.open_read(other, channel.consumer_address, LONG)
    reader.close(clean=True)
