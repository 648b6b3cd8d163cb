"""A server with the pipeline, and any servicer behind it that a test needs."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
from cartgrpc.v1 import cart_service_pb2, cart_service_pb2_grpc

from cart_grpc.rpc.admission import Admission, OpenStreams
from cart_grpc.rpc.deadlines import Deadlines
from cart_grpc.rpc.endpoint import Guards
from cart_grpc.rpc.methods import CART_SERVICE, Method
from cart_grpc.rpc.permissions import PERMISSIONS, PUBLIC
from cart_grpc.rpc.pipeline import Pipeline
from cart_grpc.rpc.receiving import Receiver
from tests.service.conftest import Replica

Servicer = Callable[..., Any]
ROWS = (Method("GetCart", ("name",)), Method("AddItem", ("parent",), writes=True, waits=True))


def admitting(**limits: int) -> Admission:
    """An admission with these limits; the others are too high to matter."""
    high = {"max_calls": 1_000, "max_calls_per_service": 1_000, "max_calls_per_user": 1_000}
    return Admission(**(high | {"max_waiting": 1_000, "max_waiting_per_user": 1_000} | limits))


def streams_with(**limits: int) -> OpenStreams:
    """Open streams with these limits; the others are too high to matter."""
    high = {"max_open": 1_000, "max_per_service": 1_000, "max_per_user": 1_000, "max_per_connection": 1_000}
    return OpenStreams(**(high | limits))


def permissions_of(rows: Sequence[Method]) -> dict[str, dict[str, str]]:
    """A permissions table that has `rows` for CartService. Methods that are not in the real one are public."""
    return {CART_SERVICE: {row.name: PERMISSIONS[CART_SERVICE].get(row.name, PUBLIC) for row in rows}}


def pipeline_of(
    server: Any,
    rows: Sequence[Method] = ROWS,
    *,
    permissions: Mapping[str, Mapping[str, str]] | None = None,
    timeout: float = 30,
    receiver: Receiver | None = None,
    streams: OpenStreams | None = None,
    **parts: Any,
) -> Any:
    """A pipeline whose methods table has `rows` for CartService. `parts` are further guards."""
    guards = Guards(Deadlines(timeout), receiver or Receiver(1_000), streams or streams_with(), **parts)
    return Pipeline(server, {CART_SERVICE: rows}, permissions or permissions_of(rows), guards)


@asynccontextmanager
async def serving(
    servicer: Servicer, timeout: float = 30, options: Sequence[tuple[str, int]] = (), **parts: Any
) -> AsyncIterator[Replica]:
    """A server whose GetCart and AddItem are both `servicer`, behind the pipeline. `options` are gRPC's."""
    requests: Any = (cart_service_pb2.GetCartRequest, cart_service_pb2.AddItemRequest)
    methods: Any = {
        row.name: grpc.unary_unary_rpc_method_handler(servicer, request_deserializer=request.FromString)
        for row, request in zip(ROWS, requests, strict=True)
    }
    server = grpc.aio.server(options=options)
    pipeline_of(server, timeout=timeout, **parts).add_registered_method_handlers(CART_SERVICE, methods)
    async with started(server) as (channel, port):
        yield Replica(cart_service_pb2_grpc.CartServiceStub(channel), channel, port)


@asynccontextmanager
async def started(server: grpc.aio.Server) -> AsyncIterator[tuple[grpc.aio.Channel, int]]:
    """The server, listening: a client's channel, and the port."""
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel, port
    finally:
        await server.stop(0)
