"""The reference servers. `python -m benchmarks.servers noop` prints its address."""

import asyncio
import itertools
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import uvloop
from cartgrpc.v1 import cart_service_pb2
from google.protobuf import wrappers_pb2

from cart_grpc.rpc.server import OPTIONS

# 37 bytes on the wire, as for an id.
REPLY = wrappers_pb2.StringValue(value="0" * 35)
# The moody server ends these of every ten calls with an error, and answers the others.
MOODS = {3: grpc.StatusCode.RESOURCE_EXHAUSTED, 6: grpc.StatusCode.UNAVAILABLE, 9: grpc.StatusCode.INTERNAL}

_numbers = itertools.count()


async def answer(_: cart_service_pb2.AddItemRequest, __: Any) -> wrappers_pb2.StringValue:
    """Do nothing. No Python gRPC service can be faster."""
    return REPLY


async def answer_by_mood(_: cart_service_pb2.AddItemRequest, context: Any) -> wrappers_pb2.StringValue:
    """Refuse three calls of ten. gRPC sends refusals with HTTP 200, and the load generator must still count them."""
    if mood := MOODS.get(next(_numbers) % 10):
        await context.abort(mood, "refused on purpose")
    return REPLY


async def serve(behaviour: Callable[[cart_service_pb2.AddItemRequest, Any], Awaitable[Any]]) -> None:
    """Serve without interceptors, with the product's options and event loop. The request is an AddItem."""
    server = grpc.aio.server(options=OPTIONS)
    method = grpc.unary_unary_rpc_method_handler(
        behaviour,
        request_deserializer=cart_service_pb2.AddItemRequest.FromString,
        response_serializer=wrappers_pb2.StringValue.SerializeToString,
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.v1.Bench", {"Noop": method}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"listens on 127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    loops = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}
    with asyncio.Runner(loop_factory=loops[sys.argv[2] if sys.argv[2:] else "uvloop"]) as runner:
        runner.run(serve({"noop": answer, "moody": answer_by_mood}[sys.argv[1]]))
