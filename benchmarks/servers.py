"""The servers that the product is compared with. `python -m benchmarks.servers noop` prints the port it listens on."""

import asyncio
import sys

import grpc
import uvloop
from cart.v1 import cart_service_pb2
from google.protobuf import wrappers_pb2

from cart_grpc.rpc.server import OPTIONS

# 37 bytes on the wire, as an id is.
REPLY = wrappers_pb2.StringValue(value="0" * 35)


async def answer(_: cart_service_pb2.AddItemRequest, __: object) -> wrappers_pb2.StringValue:
    """Nothing at all: what any Python gRPC service could do at best."""
    return REPLY


async def serve_noop() -> None:
    """The reference: no interceptor, no work, the product's options and loop, an AddItem's bytes as the request."""
    server = grpc.aio.server(options=OPTIONS)
    method = grpc.unary_unary_rpc_method_handler(
        answer,
        request_deserializer=cart_service_pb2.AddItemRequest.FromString,
        response_serializer=wrappers_pb2.StringValue.SerializeToString,
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.v1.Bench", {"Noop": method}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"listens on 127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run({"noop": serve_noop}[sys.argv[1]]())
