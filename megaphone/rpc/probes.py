"""The question of load balancers to a gRPC server: its health."""

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health

EVERYTHING = ""
"""The name under which `grpc.health.v1` answers for the server as a whole."""
HEALTH_SERVICE = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name


class Health:
    """Serves `grpc.health.v1` for a server as a whole, and for one of its services by name."""

    def __init__(self, server: grpc.aio.Server, service: str) -> None:
        self._names = (EVERYTHING, service)
        self._health = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)

    async def report(self, *, serves: bool) -> None:
        """Report SERVING or NOT_SERVING from now on."""
        answers = health_pb2.HealthCheckResponse
        for name in self._names:
            await self._health.set(name, answers.SERVING if serves else answers.NOT_SERVING)

    async def report_shutdown(self) -> None:
        """Report NOT_SERVING from now on, so that callers go elsewhere."""
        await self._health.enter_graceful_shutdown()
