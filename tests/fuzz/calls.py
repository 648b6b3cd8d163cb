"""Draws calls to a server: every method of every service that it offers, and methods that it lacks."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import grpc
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from tests.fuzz.requests import METHODS, Seen, change_bytes, draw_request, draw_text, encode
from tests.fuzz.targets import QUERIES, draw_page
from tests.rpc.right import ADMIN, path_of, request_of

Metadata = list[tuple[str, str | bytes]]
# Returns a function that makes a call: it sends messages and metadata, and returns the replies.
Kind = Callable[[grpc.aio.Channel, str], Any]
# A call that takes longer hangs.
HANGS_AFTER: Final = 30.0
USERS: Final = tuple(f"users/fuzzed-{number}" for number in range(8))
SERVICES: Final = ("", "cartgrpc.v1.CartService", "cartgrpc.v1.CartAdminService", "grpc.health.v1.Health")
SYMBOLS: Final = (*SERVICES, "cartgrpc.v1.Cart", "cartgrpc.v1.CartService.AddItem", "google.protobuf.Any", ".", "x.y")
FILES: Final = ("cartgrpc/v1/cart.proto", "google/protobuf/any.proto", "../../etc/passwd", "", "/")
# Any, because the stubs of these modules have descriptors of another type.
HEALTH: Final[Any] = health_pb2.HealthCheckRequest.DESCRIPTOR
REFLECTION: Final[Any] = reflection_pb2.ServerReflectionRequest.DESCRIPTOR
MISSING: Final = ("/cartgrpc.v1.CartService/Missing", "/x.Y/Z", "/grpc.health.v1.Health/X", "/", "/a", "//", "/../..")


@dataclass(frozen=True)
class Drawn:
    """A call. `method` is its name as in `right`, "" for one of another service, which every port offers."""

    kind: Kind
    path: str
    messages: list[bytes]
    method: str = ""

    @property
    def is_for_operators(self) -> bool:
        return self.method.startswith(ADMIN)

    def __str__(self) -> str:
        shown = [message.hex() if len(message) < 5000 else len(message) for message in self.messages]
        return f"{self.path} {shown}"


def draw_call(rng: random.Random, user: str, seen: Seen) -> Drawn:
    """The next call. Most requests are about resources of `user`."""
    match rng.randrange(24):
        case 0:
            name = rng.choice(("Check", "Watch", "List"))
            request = health_pb2.HealthCheckRequest(service=rng.choice(SERVICES)).SerializeToString()
            message = rng.choice((request, request + encode(rng, HEALTH)))
            return Drawn(first_reply if name == "Watch" else unary, f"/grpc.health.v1.Health/{name}", [message])
        case 1:
            path = f"/grpc.reflection.{rng.choice(('v1', 'v1alpha'))}.ServerReflection/ServerReflectionInfo"
            return Drawn(_exchange, path, [_draw_reflection(rng) for _ in range(rng.choice((1, 1, 2, 0)))])
        case 2:
            return Drawn(rng.choice((unary, first_reply)), rng.choice(MISSING), [rng.randbytes(4)])
        case 3:
            method = rng.choice(tuple(QUERIES))
            return Drawn(unary, path_of(method), [draw_page(rng, method).SerializeToString()], method)
    method = rng.choice(METHODS)
    message = _in_a_hurry(method, draw_request(rng, method, user, seen))
    return Drawn(first_reply if method == "WatchCart" else unary, path_of(method), [message], method)


def draw_metadata(rng: random.Random) -> Metadata:
    """Metadata that has no meaning here. Another `authorization` may follow."""
    values = ("", "x", "Bearer ", "Bearer a.b.c", "Bearer " + "A" * 3000, "users/alice", "1e9", "-1", "~" * 200)
    keys = ("authorization", "x-forwarded-for", "x-forwarded-user", "x-request-id", "grpc-foo", "content-language")
    drawn: Metadata = [(rng.choice(keys), rng.choice(values)) for _ in range(rng.choice((0, 0, 2)))]
    if rng.randrange(8) == 7:
        drawn.append(("trace-bin", rng.randbytes(rng.choice((0, 1, 100)))))
    return drawn


def unary(channel: grpc.aio.Channel, path: str) -> Any:
    async def call(sent: list[bytes], metadata: Any) -> list[bytes]:
        begin: Any = channel.unary_unary(path)
        return [await begin(sent[0], timeout=HANGS_AFTER, metadata=metadata)]

    return call


def first_reply(channel: grpc.aio.Channel, path: str) -> Any:
    """A stream of which only the first message is read."""

    async def call(sent: list[bytes], metadata: Any) -> list[bytes]:
        begin: Any = channel.unary_stream(path)
        stream = begin(sent[0], timeout=HANGS_AFTER, metadata=metadata)
        first = await stream.read()
        stream.cancel()
        return [] if first is grpc.aio.EOF else [first]

    return call


def _exchange(channel: grpc.aio.Channel, path: str) -> Any:
    async def call(sent: list[bytes], metadata: Any) -> list[bytes]:
        stream: Any = channel.stream_stream(path)(timeout=HANGS_AFTER, metadata=metadata)
        replies: list[Any] = []
        for message in sent:
            try:
                await stream.write(message)
            except grpc.aio.AioRpcError as error:
                # If the server ends the call during a write, gRPC's client puts a status of its own over the server's.
                if error.details() == "Internal error from Core":
                    return replies
                raise
            replies.append(await stream.read())
        await stream.done_writing()
        replies.append(await stream.read())
        return [reply for reply in replies if reply is not grpc.aio.EOF]

    return call


def _draw_reflection(rng: random.Random) -> bytes:
    kind = reflection_pb2.ServerReflectionRequest
    extension = reflection_pb2.ExtensionRequest(
        containing_type=rng.choice(SYMBOLS), extension_number=rng.choice((0, -1, 1, 2**31 - 1))
    )
    symbol = draw_text(rng, "symbol", {"symbol": SYMBOLS}).decode(errors="ignore")
    request = rng.choice(
        (
            kind(list_services="*"),
            kind(file_by_filename=rng.choice((*FILES, symbol))),
            kind(file_containing_symbol=rng.choice((*SYMBOLS, symbol))),
            kind(file_containing_extension=extension),
            kind(all_extension_numbers_of_type=rng.choice((*SYMBOLS, symbol))),
            kind(host=symbol),
        )
    )
    sent: bytes = request.SerializeToString()
    return rng.choice((sent, sent, sent + encode(rng, REFLECTION), change_bytes(rng, sent)))


def _in_a_hurry(method: str, sent: bytes) -> bytes:
    """The request with a max_wait below a second, if it had a longer one that is valid."""
    request = request_of(method)
    field: FieldDescriptor | None = request.DESCRIPTOR.fields_by_name.get("max_wait")
    try:
        request.ParseFromString(sent)
    except DecodeError:
        return sent
    if field is None or not request.HasField("max_wait") or not 0 < request.max_wait.seconds <= 60:
        return sent
    request.max_wait.Clear()
    message: Message = request
    return message.SerializeToString()
