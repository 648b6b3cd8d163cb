"""`grpc.health.v1.Health`. A watcher that does not read delays nobody: each waits in a task of its own.

grpc_health's servicer is not used. It writes to its watchers while it holds a lock, so one peer with a closed window
stopped all health reports of a server for 19 seconds. Its List is INTERNAL.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc

from cart_grpc.carts.refusals import NotFound, ShuttingDown

SERVICE = "grpc.health.v1.Health"
Status = health_pb2.HealthCheckResponse


class ServiceNotFound(NotFound):
    """This server reports no health for a service of this name."""

    reason = "SERVICE_NOT_FOUND"

    def __init__(self, name: str) -> None:
        # A longer name could exceed the metadata that a caller accepts.
        super().__init__(SERVICE, name[:200])


class Health(health_pb2_grpc.HealthServicer):
    """The health of `services`, which is NOT_SERVING at first.

    A watcher gets the current status, not each change. A slow watcher misses statuses that ended before it read.
    """

    def __init__(self, *services: str) -> None:
        self._statuses: dict[str, int] = dict.fromkeys(services, Status.NOT_SERVING)
        self._is_stopping = False
        self._is_closed = False
        self._changed = asyncio.Event()

    def set(self, service: str, *, serving: bool) -> None:
        """Set the status of a service. After `stop` it stays NOT_SERVING."""
        if not self._is_stopping:
            self._statuses[service] = Status.SERVING if serving else Status.NOT_SERVING
            self._wake()

    def set_all(self, *, serving: bool) -> None:
        """Set the status of every service."""
        for service in self._statuses:
            self.set(service, serving=serving)

    def stop(self) -> None:
        """Report NOT_SERVING for all services from now on."""
        self.set_all(serving=False)
        self._is_stopping = True

    def close(self) -> None:
        """End each watch as soon as its peer has got the current status."""
        self._is_closed = True
        self._wake()

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> Status:
        status = self._statuses.get(request.service)
        if status is None:
            raise ServiceNotFound(request.service)
        return Status(status=status)

    async def List(self, request: Any, context: Any) -> Any:
        statuses = {service: Status(status=status) for service, status in self._statuses.items()}
        # Not every version of grpc_health has this message. Those that lack it do not call this method.
        return health_pb2.HealthListResponse(statuses=statuses)  # type: ignore[attr-defined]

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> AsyncIterator[Status]:
        sent = None
        while True:
            changed = self._changed
            status = self._statuses.get(request.service, Status.SERVICE_UNKNOWN)
            if status != sent:
                yield Status(status=status)
                # The status may have changed while the peer took this one, so look again.
                sent = status
            elif self._is_closed:
                raise ShuttingDown
            else:
                await changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
