"""A server with the guard and whatever behaviour a test wants behind it."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
from cartgrpc.v1 import cart_service_pb2, cart_service_pb2_grpc

from cart_grpc.rpc.admission import Admission
from cart_grpc.rpc.guard import Guard
from cart_grpc.rpc.server import SERVICE
from tests.service.conftest import Replica

Behaviour = Callable[[Any, grpc.aio.ServicerContext[Any, Any]], Any]


@asynccontextmanager
async def guarded(
    behaviour: Behaviour, timeout: float = 30, admission: Admission | None = None
) -> AsyncIterator[Replica]:
    """A server with the guard and nothing else of ours."""
    server = grpc.aio.server()
    requests = (("GetCart", cart_service_pb2.GetCartRequest()), ("AddItem", cart_service_pb2.AddItemRequest()))
    handlers: dict[str, Any] = {
        method: grpc.unary_unary_rpc_method_handler(behaviour, request_deserializer=type(request).FromString)
        for method, request in requests
    }
    Guard(server, timeout, admission).add_registered_method_handlers(SERVICE, handlers)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Replica(cart_service_pb2_grpc.CartServiceStub(channel), channel, port)
    finally:
        await server.stop(0)
