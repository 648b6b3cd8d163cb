"""What callers ask for: requests of every mutating call, drawn at random."""

from dataclasses import dataclass, field
from random import Random

from cartgrpc.v1 import cart_pb2, cart_service_pb2
from google.protobuf.message import Message

from cart_grpc.names import item_id_of

SKUS = ("beans", "filters", "kettle", "scarce")
SCARCE = "scarce"
_METHODS = {
    "AddItem": 8,
    "BatchAddItems": 2,
    "UpdateItem": 4,
    "RemoveItem": 5,
    "ClearCart": 1,
    "DeleteCart": 0.5,
    "RetryReservation": 2,
}


@dataclass(slots=True)
class Operation:
    """One operation of a caller, and all that is known of its attempts.

    `etag_of_mine` says that the request carries the etag last seen, which is what a careful caller does.
    """

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


def draw(numbers: Random, number: int, carts: list[str], skus: list[str], etags: dict[str, str]) -> Operation:
    """The next operation of a caller."""
    cart = numbers.choice(carts)
    method = numbers.choices(list(_METHODS), list(_METHODS.values()))[0]
    # Some callers do without, and never learn what became of a call that was cut off.
    request_id = f"request-{number}" if numbers.random() < 0.75 else ""
    etag = etags.get(cart, "") if numbers.random() < 0.15 else ""
    request = _request(numbers, method, cart, skus)
    request.request_id = request_id
    request.etag = etag
    if numbers.random() < 0.1:
        request.max_wait.FromMilliseconds(numbers.randrange(100, 20_000))
    return Operation(number, cart, method, request, request_id)


def _request(numbers: Random, method: str, cart: str, skus: list[str]) -> "cart_service_pb2.AddItemRequest":
    service = cart_service_pb2
    name = f"{cart}/items/{item_id_of(numbers.choice(skus), _options(numbers))}"
    request: Message
    match method:
        case "AddItem":
            request = _addition(numbers, cart, skus)
        case "BatchAddItems":
            additions = [_addition(numbers, cart, skus) for _ in range(numbers.randint(1, 3))]
            request = service.BatchAddItemsRequest(parent=cart, requests=additions)
        case "UpdateItem":
            request = service.UpdateItemRequest(item=cart_pb2.Item(name=name, quantity=numbers.randint(1, 8)))
            request.update_mask.paths.append("quantity")
        case "RemoveItem":
            request = service.RemoveItemRequest(name=name)
        case "ClearCart":
            request = service.ClearCartRequest(name=cart)
        case "DeleteCart":
            request = service.DeleteCartRequest(name=cart)
        case _:
            request = service.RetryReservationRequest(name=name)
    return request  # type: ignore[return-value]  # all have request_id, etag and max_wait


def _addition(numbers: Random, cart: str, skus: list[str]) -> cart_service_pb2.AddItemRequest:
    item = cart_pb2.Item(sku=numbers.choice(skus), options=_options(numbers), quantity=numbers.randint(1, 5))
    return cart_service_pb2.AddItemRequest(parent=cart, item=item)


def _options(numbers: Random) -> dict[str, str]:
    return {"size": "large"} if numbers.random() < 0.15 else {}
