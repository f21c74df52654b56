"""What this node shows to its targets, and what it wants of them before it sends a key."""

import time

import grpc

from megaphone.cluster.node_secret import GREETING, HAS_NOT_PROVED, NodeSigner, Proof
from megaphone.errors import Unauthenticated
from megaphone.settings import Nodes
from megaphone.wire.sync import PROOF_KEY, proof_of
from megaphone_api.sync_pb2 import FindChannelsInUseRequest
from megaphone_api.sync_pb2_grpc import SyncServiceStub

FORWARDING = "/megaphone.SyncService/ForwardEvents"

Metadata = tuple[tuple[str, str], ...]


class Credentials:
    """Proofs that this node has its secret, as metadata of calls; none where it has no secret."""

    def __init__(self, nodes: Nodes) -> None:
        self._signer = None if nodes.secret is None else NodeSigner(nodes.secret)
        self._is_open = nodes.open

    async def greet(self, channel: grpc.aio.Channel, within_s: float) -> Metadata:
        """Let a target prove that it has the secret too.

        Returns: the metadata of the call that forwards an agent to it.
        Raises: Unauthenticated, when it has not proved it, unless `nodes.open` lets that pass;
            AioRpcError, when it refuses this node or cannot be reached.
        """
        if self._signer is None:
            return ()
        greeting = self._signer.prove(GREETING, time.time())
        answer = await answer_to(greeting, channel, within_s)
        target_id = self._signer.target_of(greeting, answer)
        if target_id is not None:
            return metadata_of(self._signer.prove(FORWARDING, time.time(), target_id))
        if self._is_open:
            return ()
        raise Unauthenticated(HAS_NOT_PROVED)

    def for_question(self) -> Metadata:
        """Return the metadata of a `FindChannelsInUse`."""
        if self._signer is None:
            return ()
        return metadata_of(self._signer.prove(GREETING, time.time()))


async def answer_to(greeting: Proof, channel: grpc.aio.Channel, within_s: float) -> str | None:
    """Return what a target shows in return, if anything. Raises: AioRpcError, when it refuses."""
    call = SyncServiceStub(channel).FindChannelsInUse(
        FindChannelsInUseRequest(), metadata=metadata_of(greeting), timeout=within_s
    )
    try:
        await call
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.UNIMPLEMENTED:  # that is the Rust broker's answer
            raise
    return proof_of(await call.initial_metadata())


def metadata_of(proof: Proof) -> Metadata:
    return ((PROOF_KEY, proof.text),)
