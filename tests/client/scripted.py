"""A gRPC server that answers as a script says, for what a real server does only in bad moments."""

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import grpc
from cartgrpc.v1 import cart_pb2, cart_service_pb2, cart_service_pb2_grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

# One answer: a status to end with, a message, or None to hang.
Answer: TypeAlias = "grpc.Status | Message | None"


@dataclass
class Attempt:
    """One attempt of a call, as the server saw it."""

    request: Any
    time: float
    seconds_left: float
    authorization: str
    traceparent: str


@dataclass
class Scripted:
    """Answers each call with the next entry of `script`, and each watch with the next list. Then it hangs."""

    address: str = ""
    script: list[Answer] = field(default_factory=list)
    watches: list[Sequence[Answer]] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    peers: list[str] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)
    called: threading.Event = field(default_factory=threading.Event)

    def AddItem(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Answer as the script says."""
        self._note(request, context)
        return self._answer(self.script.pop(0) if self.script else None, context)

    def WatchCart(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        """Stream what the script says."""
        self._note(request, context)
        for answer in self.watches.pop(0) if self.watches else (None,):
            message = self._answer(answer, context)
            if message is not None:
                yield message

    def GetCart(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Answer as the script says. Without a script, refuse."""
        self._note(request, context)
        refused = refusal(grpc.StatusCode.UNIMPLEMENTED)
        return self._answer(self.script.pop(0) if self.script else refused, context)

    def servicer(self) -> Any:
        """The servicer for generated code: its other methods are not implemented."""
        kind: Any = cart_service_pb2_grpc.CartServiceServicer
        servicer = kind()
        servicer.AddItem, servicer.GetCart, servicer.WatchCart = self.AddItem, self.GetCart, self.WatchCart
        return servicer

    def _note(self, request: Any, context: Any) -> None:
        sent = dict(context.invocation_metadata())
        seconds_left = context.time_remaining() or 0.0
        found = sent.get("authorization", ""), sent.get("traceparent", "")
        self.attempts.append(Attempt(request, time.monotonic(), seconds_left, *found))
        self.peers.append(context.peer())
        context.add_callback(self.ended.set)
        self.called.set()

    def _answer(self, answer: Answer, context: Any) -> Any:
        if isinstance(answer, grpc.Status):
            context.abort_with_status(answer)
        if answer is None:
            over = threading.Event()
            if context.add_callback(over.set):
                over.wait(20)
        return answer


@contextmanager
def scripted_server(credentials: grpc.ServerCredentials | None = None) -> Iterator[Scripted]:
    """Yield a server without a script. With `credentials`, it uses TLS, and its name is `localhost`."""
    scripted = Scripted()
    with ThreadPoolExecutor(8) as pool:
        server = grpc.server(pool)
        cart_service_pb2_grpc.add_CartServiceServicer_to_server(scripted.servicer(), server)
        if credentials is None:
            scripted.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        else:
            scripted.address = f"localhost:{server.add_secure_port('localhost:0', credentials)}"
        server.start()
        try:
            yield scripted
        finally:
            server.stop(0).wait()


def refusal(code: grpc.StatusCode, reason: str = "", *, retry_after: float | None = None) -> grpc.Status:
    """A status as the service sends it; without a reason, as gRPC itself does."""
    details: list[Message] = []
    if reason:
        details.append(error_details_pb2.ErrorInfo(reason=reason, domain="cartgrpc.v1", metadata={"limit": "3"}))
    if retry_after is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMicroseconds(round(retry_after * 1e6))
        details.append(retry)
    return with_details(code, *details)


def with_details(code: grpc.StatusCode, *details: Message) -> grpc.Status:
    """A status with these details."""
    packed = []
    for detail in details:
        packed.append(AnyMessage())
        packed[-1].Pack(detail)
    number: int = code.value[0]
    return rpc_status.to_status(status_pb2.Status(code=number, message="no", details=packed))


def added(quantity: int = 1) -> cart_service_pb2.AddItemResponse:
    """A reply of AddItem."""
    return cart_service_pb2.AddItemResponse(item=cart_pb2.Item(sku="beans", quantity=quantity))


def state(revision: int, uid: str = "1", **fields: Any) -> cart_service_pb2.WatchCartResponse:
    """A message of WatchCart."""
    fields.setdefault("state", cart_pb2.Cart.STATE_ACTIVE)
    return cart_service_pb2.WatchCartResponse(cart=cart_pb2.Cart(revision=revision, uid=uid, **fields))


def heartbeat() -> cart_service_pb2.WatchCartResponse:
    """A heartbeat of WatchCart."""
    return cart_service_pb2.WatchCartResponse(heartbeat=cart_service_pb2.WatchCartResponse.Heartbeat())
