"""Random requests of every mutating method."""

from dataclasses import dataclass, field
from random import Random

from cartgrpc.v1 import cart_pb2, cart_service_pb2
from google.protobuf.message import Message

from cart_grpc.names import item_id_of

SKUS = ("beans", "filters", "kettle", "scarce")
SCARCE = "scarce"
_METHODS = {
    "AddItem": 8,
    "BatchAddItems": 5,
    "UpdateItem": 4,
    "RemoveItem": 5,
    "ReplaceItems": 2,
    "ClearCart": 1.5,
    "DeleteCart": 0.5,
    "RetryReservation": 2,
}


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
    def resolved(self) -> bool:
        return self.reply is not None or bool(self.refused)


def draw(rng: Random, number: int, carts: list[str], skus: list[str], etags: dict[str, str]) -> CallerOperation:
    """Draw the next operation of a caller."""
    cart = rng.choice(carts)
    method = rng.choices(list(_METHODS), list(_METHODS.values()))[0]
    # Some callers send no request_id. They never learn the outcome of a call whose reply was lost.
    request_id = f"request-{number}" if rng.random() < 0.75 else ""
    etag = etags.get(cart, "") if rng.random() < 0.15 else ""
    request = _request(rng, method, cart, skus)
    request.request_id = request_id
    request.etag = etag
    if rng.random() < 0.1:
        request.max_wait.FromMilliseconds(rng.randrange(100, 20_000))
    return CallerOperation(number, cart, method, request, request_id)


def _request(rng: Random, method: str, cart: str, skus: list[str]) -> "cart_service_pb2.AddItemRequest":
    service = cart_service_pb2
    name = f"{cart}/items/{item_id_of(rng.choice(skus), _options(rng))}"
    request: Message
    match method:
        case "AddItem":
            request = _addition(rng, cart, skus)
        case "BatchAddItems":
            additions = [_addition(rng, cart, skus) for _ in range(rng.randint(2, 6))]
            request = service.BatchAddItemsRequest(parent=cart, requests=additions)
        case "UpdateItem":
            request = service.UpdateItemRequest(item=cart_pb2.Item(name=name, quantity=rng.randint(1, 8)))
            request.update_mask.paths.append("quantity")
        case "RemoveItem":
            request = service.RemoveItemRequest(name=name)
        case "ReplaceItems":
            items = [_addition(rng, cart, skus).item for _ in range(rng.randint(0, 4))]
            request = service.ReplaceItemsRequest(name=cart, items=items)
        case "ClearCart":
            request = service.ClearCartRequest(name=cart)
        case "DeleteCart":
            request = service.DeleteCartRequest(name=cart)
        case _:
            request = service.RetryReservationRequest(name=name)
    return request  # type: ignore[return-value]  # all have request_id, etag and max_wait


def _addition(rng: Random, cart: str, skus: list[str]) -> cart_service_pb2.AddItemRequest:
    item = cart_pb2.Item(sku=rng.choice(skus), options=_options(rng), quantity=rng.randint(1, 5))
    return cart_service_pb2.AddItemRequest(parent=cart, item=item)


def _options(rng: Random) -> dict[str, str]:
    return {"size": "large"} if rng.random() < 0.15 else {}
