"""Random requests of every mutating method."""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any, NamedTuple

from cartgrpc.v1 import cart_pb2
from cartgrpc.v1 import cart_service_pb2 as service
from google.protobuf.message import Message

from cart_grpc.names import item_id_of

SKUS = ("beans", "filters", "kettle", "scarce")
SCARCE = "scarce"
_METHODS = {
    "AddItem": 8,
    "BatchAddItems": 5,
    "UpdateItem": 4,
    "RemoveItem": 5,
    "ClearCart": 1.5,
    "DeleteCart": 0.5,
    "RetryReservation": 2,
    "ReplaceItems": 2,
    "MergeCarts": 2,
    "BeginCheckout": 4,
    "CompleteCheckout": 4,
    "CancelCheckout": 1,
}
# Calls whose replies show a checkout, and no cart.
CHECKOUT_CALLS = {"BeginCheckout", "CompleteCheckout", "CancelCheckout"}


@dataclass(slots=True)
class CallerOperation:
    """One operation of a caller and the results of its attempts. Times are in seconds of virtual time."""

    number: int
    cart: str
    method: str
    request: Message
    request_id: str
    invoked: float = 0.0
    returned: float = float("inf")
    reply: Message | None = None
    refused: str = ""
    attempts: int = 0
    replies: set[bytes] = field(default_factory=set)

    @property
    def shows_cart(self) -> bool:
        """Whether its reply shows a cart, with etag and revision."""
        return self.method not in CHECKOUT_CALLS

    @property
    def resolved(self) -> bool:
        return self.reply is not None or bool(self.refused)


class Known(NamedTuple):
    """The knowledge of callers: carts, skus, and the latest etags and checkouts by cart."""

    carts: list[str]
    skus: list[str]
    etags: dict[str, str]
    checkouts: dict[str, str]


def draw(rng: Random, number: int, known: Known) -> CallerOperation:
    """Draw the next operation of a caller."""
    cart = rng.choice(known.carts)
    method = rng.choices(list(_METHODS), list(_METHODS.values()))[0]
    # Some callers send no request_id. They never learn the outcome of a call whose reply was lost.
    request_id = f"request-{number}" if rng.random() < 0.75 else ""
    operation = make(rng, number, method, cart, known, request_id)
    request: Any = operation.request
    if rng.random() < 0.15 and operation.method not in ("CompleteCheckout", "CancelCheckout"):
        request.etag = known.etags.get(cart, "")
    if rng.random() < 0.1:
        request.max_wait.FromMilliseconds(rng.randrange(100, 20_000))
    return operation


def make(
    rng: Random, number: int, method: str, cart: str, known: Known, request_id: str | None = None
) -> CallerOperation:
    """An operation of this kind on this cart. Without a checkout to complete or to cancel, it begins one."""
    if method in ("CompleteCheckout", "CancelCheckout") and cart not in known.checkouts:
        method = "BeginCheckout"
    request: Any = _DRAWS[method](rng, cart, known)
    request.request_id = f"request-{number}" if request_id is None else request_id
    return CallerOperation(number, cart, method, request, request.request_id)


def _batch(rng: Random, cart: str, known: Known) -> Message:
    additions = [_addition(rng, cart, known) for _ in range(rng.randint(2, 6))]
    return service.BatchAddItemsRequest(parent=cart, requests=additions)


def _replacement(rng: Random, cart: str, known: Known) -> Message:
    items = [_addition(rng, cart, known).item for _ in range(rng.randint(0, 4))]
    return service.ReplaceItemsRequest(name=cart, items=items)


def _update(rng: Random, cart: str, known: Known) -> Message:
    item = cart_pb2.Item(name=_item(rng, cart, known), quantity=rng.randint(1, 8))
    request = service.UpdateItemRequest(item=item)
    request.update_mask.paths.append("quantity")
    return request


def _beginning(rng: Random, cart: str, known: Known) -> Message:
    request = service.BeginCheckoutRequest(name=cart)
    request.window.seconds = rng.choice([60, 90, 900])
    return request


def _merge(rng: Random, cart: str, known: Known) -> Message:
    source = rng.choice([one for one in known.carts if one != cart])
    return service.MergeCartsRequest(name=cart, source=source)


def complete(checkout: str, order_reference: str) -> service.CompleteCheckoutRequest:
    return service.CompleteCheckoutRequest(name=checkout, order_reference=order_reference)


def _item(rng: Random, cart: str, known: Known) -> str:
    return f"{cart}/items/{item_id_of(rng.choice(known.skus), _options(rng))}"


def _addition(rng: Random, cart: str, known: Known) -> service.AddItemRequest:
    item = cart_pb2.Item(sku=rng.choice(known.skus), options=_options(rng), quantity=rng.randint(1, 5))
    return service.AddItemRequest(parent=cart, item=item)


def _options(rng: Random) -> dict[str, str]:
    return {"size": "large"} if rng.random() < 0.15 else {}


_DRAWS: dict[str, Callable[[Random, str, Known], Message]] = {
    "AddItem": _addition,
    "BatchAddItems": _batch,
    "UpdateItem": _update,
    "RemoveItem": lambda rng, cart, known: service.RemoveItemRequest(name=_item(rng, cart, known)),
    "ClearCart": lambda _, cart, __: service.ClearCartRequest(name=cart),
    "DeleteCart": lambda _, cart, __: service.DeleteCartRequest(name=cart),
    "RetryReservation": lambda rng, cart, known: service.RetryReservationRequest(name=_item(rng, cart, known)),
    "ReplaceItems": _replacement,
    "MergeCarts": _merge,
    "BeginCheckout": _beginning,
    "CompleteCheckout": lambda rng, cart, known: complete(
        known.checkouts[cart], "other" if rng.random() < 0.05 else "order"
    ),
    "CancelCheckout": lambda _, cart, known: service.CancelCheckoutRequest(name=known.checkouts[cart]),
}
