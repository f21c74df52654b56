"""The proofs between a source and a target.

The source proves that it has the node secret, and checks the proof of the target before it sends
the address key of an agent.
"""

import time
from collections.abc import Callable

import grpc

from megaphone.cluster.node_secret import GREETING, HAS_NOT_PROVED, NodeSigner, Proof
from megaphone.errors import NodeUnauthenticated
from megaphone.settings import Nodes
from megaphone.wire.sync import PROOF_KEY, proof_of
from megaphone_api.sync_pb2 import FindChannelsInUseRequest
from megaphone_api.sync_pb2_grpc import SyncServiceStub

FORWARDING = "/megaphone.SyncService/ForwardEvents"

Metadata = tuple[tuple[str, str], ...]


class Credentials:
    """Makes the metadata that proves to a target that this node has the node secret.

    Without a node secret the metadata is empty.
    """

    def __init__(
        self, nodes: Nodes, for_tls: Callable[[], grpc.ChannelCredentials] | None = None
    ) -> None:
        """`for_tls` returns the certificate of this node for other nodes, if it has one."""
        self.for_tls = for_tls
        self._signer = None if nodes.secret is None else NodeSigner(nodes.secret)
        self._is_open = nodes.open

    async def greet(self, channel: grpc.aio.Channel, within_s: float) -> Metadata:
        """Ask a target to prove that it has the node secret too.

        Returns: the metadata of the call that replicates an agent to the target.
        Raises: Unauthenticated, when the target does not prove it, unless `nodes.open` is set;
            AioRpcError, when the target refuses this node or cannot be reached.
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
        raise NodeUnauthenticated(HAS_NOT_PROVED)

    def for_question(self) -> Metadata:
        """Return the metadata of a `FindChannelsInUse` call."""
        if self._signer is None:
            return ()
        return metadata_of(self._signer.prove(GREETING, time.time()))


NO_PROOF = Credentials(Nodes())
"""For a target whose certificate proves who it is."""


async def answer_to(greeting: Proof, channel: grpc.aio.Channel, within_s: float) -> str | None:
    """Send a greeting to a target, and return the proof in its answer; None if it has none.

    Raises: AioRpcError, when the target refuses this node or cannot be reached.
    """
    call = SyncServiceStub(channel).FindChannelsInUse(
        FindChannelsInUseRequest(), metadata=metadata_of(greeting), timeout=within_s
    )
    try:
        await call
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.UNIMPLEMENTED:  # as the Rust broker answers
            raise
    return proof_of(await call.initial_metadata())


def metadata_of(proof: Proof) -> Metadata:
    return ((PROOF_KEY, proof.text),)
