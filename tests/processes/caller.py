"""A caller that repeats each call under its request_id until it is answered, and records every attempt."""

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import grpc
from cartgrpc.v1 import cart_pb2, cart_service_pb2
from google.protobuf.message import Message

from tests.invariants.history import Call, CallOutcome
from tests.processes.harness import Replicas

Response = TypeVar("Response", bound=Message)

# After these codes the effect is unknown, so the call is repeated. Any other refusal fails the test.
_AGAIN = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED})
_OPTIONS = (("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0))


@dataclass
class History:
    """Each attempt of each call of all callers, in the order in which the attempts ended."""

    calls: list[Call] = field(default_factory=list)

    def request_ids(self, outcome: CallOutcome) -> set[str]:
        """Return the request_ids of the attempts with this outcome."""
        return {call.request_id for call in self.calls if call.outcome is outcome and call.request_id}

    def repeats(self) -> Counter[str]:
        """Count the attempts that were not answered, by code."""
        return Counter(call.code for call in self.calls if call.outcome is CallOutcome.UNKNOWN)


class Caller:
    """One client, connected to one replica. After each unanswered attempt it connects to another replica."""

    def __init__(self, replicas: Replicas, history: History, name: str, seed: object) -> None:
        self.name = name
        self.numbers = random.Random(f"{seed}/{name}")
        self._replicas = replicas
        self._history = history
        self._count = 0
        self._address: str | None = None
        self._channel: grpc.aio.Channel | None = None

    async def call(self, method: str, request: Any, response: type[Response], cart: str = "") -> Response:
        """Send `request` under a new request_id until it is answered, and return the response.

        The history needs the name of the `cart`, unless it is in the request.
        """
        self._count += 1
        request.request_id = f"{self.name}-{self._count}"
        raw = request.SerializeToString(deterministic=True)
        return response.FromString(await self.send(cart or _cart_of(request), method, raw, request.request_id))

    async def get(self, name: str) -> cart_pb2.Cart:
        raw = cart_service_pb2.GetCartRequest(name=name).SerializeToString()
        return cart_service_pb2.GetCartResponse.FromString(await self.send(name, "GetCart", raw)).cart

    async def send(self, cart: str, method: str, request: bytes, request_id: str = "") -> bytes:
        """Send `request` until it is answered, and return the response's bytes. Raises AioRpcError for a refusal."""
        while True:
            channel = await self._connected()
            send: Any = channel.unary_unary(f"/cartgrpc.v1.CartService/{method}")
            attempt = Call(cart, method, request, request_id, _now(), 0, CallOutcome.UNKNOWN)
            try:
                reply: bytes = await send(request, timeout=5)
            except grpc.aio.AioRpcError as error:
                code, again = error.code(), error.code() in _AGAIN
                self._note(attempt, outcome=CallOutcome.UNKNOWN if again else CallOutcome.REFUSED, code=code.name)
                if not again:
                    raise
            else:
                self._note(attempt, outcome=CallOutcome.OK, code="OK", reply=reply)
                return reply
            await self.close()
            await asyncio.sleep(self.numbers.uniform(0.005, 0.02))

    def _note(self, attempt: Call, **end: Any) -> None:
        self._history.calls.append(replace(attempt, returned=_now(), **end))

    async def _connected(self) -> grpc.aio.Channel:
        if self._channel is None:
            self._address = await self._replicas.address(self.numbers, but=self._address)
            self._channel = grpc.aio.insecure_channel(self._address, options=_OPTIONS)
        return self._channel

    async def close(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()


def _cart_of(request: Any) -> str:
    """Return the cart's name, from `parent`, `name` or `item.name`."""
    name: str = getattr(request, "parent", "") or getattr(request, "name", "") or request.item.name
    return name.partition("/items/")[0]


def _now() -> int:
    return time.monotonic_ns() // 1000
