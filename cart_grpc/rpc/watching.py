"""WatchCart: the states of a cart as messages, heartbeats between them, and the end of the stream."""

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Final, NamedTuple

from cartgrpc.v1 import cart_service_pb2 as pb

from cart_grpc.carts.model import ENDED
from cart_grpc.carts.refusals import CartNotFound, ShuttingDown
from cart_grpc.metrics import STREAM_MESSAGES
from cart_grpc.names import CartKey
from cart_grpc.rpc.get_cart_cache import encode_get_cart
from cart_grpc.store.read.cart_json import CartJson, parse_head
from cart_grpc.store.read.cart_watches import CartWatches

HEARTBEAT_SECONDS: Final = 30.0
_STATES_SENT: Final = STREAM_MESSAGES.labels("state")
_HEARTBEATS_SENT: Final = STREAM_MESSAGES.labels("heartbeat")


class EncodedState(NamedTuple):
    """A state as the message that shows it, the cart's uid, and whether the cart has ended."""

    uid: str
    has_ended: bool
    message: bytes


def encode_state(found: CartJson) -> EncodedState:
    """The message of a state. All watchers of the cart send the same bytes."""
    cart = parse_head(found.head).cart
    # The field `cart` has the same number in GetCartResponse and WatchCartResponse.
    return EncodedState(cart.uid, cart.state in ENDED, encode_get_cart(found))


async def watch_cart(watches: CartWatches, key: CartKey) -> AsyncGenerator[bytes, None]:
    """Yield the messages of WatchCart: each newer state of the cart, and a heartbeat after 30 s without one.

    Ends after the final state of a cart that has ended, or when another cart has begun under its name. Raises
    CartNotFound, ShuttingDown when the process begins to stop, and Overloaded or DatabaseUnavailable if the first state
    cannot be read.
    """
    loop = asyncio.get_running_loop()
    quiet_since = loop.time()
    with watches.watch(key, encode_state) as states:
        first = state = await anext(states)
        if first is None:
            raise CartNotFound(key.name)
        sent = None
        # A cart that has been purged, or another cart under the name, shows that this one has ended.
        while state and state.uid == first.uid:
            # Some columns of a row change although callers see no change.
            if hash(state.message) != sent:
                sent = hash(state.message)
                _STATES_SENT.inc()
                yield state.message
                quiet_since = loop.time()
            if state.has_ended:
                return
            try:
                async with asyncio.timeout_at(quiet_since + HEARTBEAT_SECONDS):
                    state = await anext(states)
            except TimeoutError:
                _HEARTBEATS_SENT.inc()
                yield _heartbeat()
                quiet_since = loop.time()
            except StopAsyncIteration:
                raise ShuttingDown from None


def _heartbeat() -> bytes:
    message = pb.WatchCartResponse()
    message.heartbeat.time.FromNanoseconds(time.time_ns())
    return message.SerializeToString()
