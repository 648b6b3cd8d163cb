"""Operations, each put together from its attempts: its request, its reply, and its effect on the cart."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

from cartgrpc.v1 import cart_service_pb2
from google.protobuf.message import Message

from cart_grpc.carts.model import ENDED, Cart, CartState
from cart_grpc.names import item_id_of
from tests.invariants.history import Call, CallOutcome, RowVersion

FOREVER = 1 << 62
READS = frozenset({"GetCart", "GetCheckout"})
# Methods that always raise the revision. The others may change nothing.
CHANGES = frozenset({"AddItem", "BatchAddItems", "RemoveItem", "DeleteCart", "CreateCart", "Expire"})
_CLEARING = frozenset({"ClearCart", "DeleteCart", "CreateCart", "Expire"})
# Methods that change no quantity.
_OTHER = frozenset({"UpdateCart", "RetryReservation", "GetCart"})
# The quantities of a cart's items, by the items' names.
Quantities = MutableMapping[str, int]


@dataclass(frozen=True, slots=True)
class Operation:
    """An operation that took effect.

    `invoked` is the start of its first attempt, `returned` the time of its first reply. `etag` is the revision in the
    reply's etag. `expected_etag` is that in the request's etag, or None.
    """

    cart: str
    rpc: str
    request_id: str
    invoked: int
    returned: int
    request: Any
    reply: Any
    revision: int
    etag: int
    expected_etag: int | None = None
    # An expiry that no row shows, because one transaction ended the cart and created a new one.
    hidden: bool = False

    def __str__(self) -> str:
        name = f"{self.rpc} {self.request_id or 'without request_id'}"
        until = "never" if self.returned == FOREVER else self.returned
        return f"{name} on {self.cart} (invoked {self.invoked}, answered {until}, revision {self.revision})"


def parse(call: Call) -> tuple[Any, Any]:
    """The request and the reply of a call. The reply is None if there is none."""
    return _request(call), _reply(call.rpc, call.reply) if call.outcome is CallOutcome.OK else None


def _request(call: Call) -> Any:
    return getattr(cart_service_pb2, f"{call.rpc}Request").FromString(call.request)


def _reply(rpc: str, raw: bytes) -> Any:
    return getattr(cart_service_pb2, f"{rpc}Response").FromString(raw)


def body(call: Call) -> bytes:
    """The body that all attempts under one request_id must share."""
    request = _request(call)
    for name in ("request_id", "max_wait"):
        if name in request.DESCRIPTOR.fields_by_name:
            request.ClearField(name)
    raw: bytes = request.SerializeToString(deterministic=True)
    return call.rpc.encode() + b"\0" + raw


def by_request_id(calls: Iterable[Call]) -> dict[tuple[str, str], list[Call]]:
    """The attempts with a request_id, by user and request_id."""
    attempts: defaultdict[tuple[str, str], list[Call]] = defaultdict(list)
    for call in calls:
        if call.request_id:
            attempts[call.user, call.request_id].append(call)
    return dict(attempts)


def took_place(calls: Iterable[Call], replies: Mapping[tuple[str, str], bytes]) -> list[Operation]:
    """The operations that were answered, and those whose reply only the database has (`replies`)."""
    calls = list(calls)
    operations = [
        _operation([call], call.reply) for call in calls if not call.request_id and call.outcome is CallOutcome.OK
    ]
    for key, attempts in by_request_id(calls).items():
        answers = [attempt.reply for attempt in attempts if attempt.outcome is CallOutcome.OK]
        stored = replies.get(key)
        if answers or stored is not None:
            operations.append(_operation(attempts, answers[0] if answers else stored or b""))
    return operations


def _operation(attempts: Sequence[Call], raw: bytes) -> Operation:
    first = min(attempts, key=lambda attempt: attempt.invoked)
    answered = [attempt for attempt in attempts if attempt.outcome is CallOutcome.OK]
    # If several bodies were sent under one id, the answered one is the operation.
    call = answered[0] if answered else first
    request, reply = _request(call), _reply(call.rpc, raw)
    shown = reply.cart if "cart" in reply.DESCRIPTOR.fields_by_name else reply
    expected = getattr(request, "etag", "")
    return Operation(
        cart=call.cart,
        rpc=call.rpc,
        request_id=call.request_id,
        invoked=first.invoked,
        returned=min((attempt.returned for attempt in answered), default=FOREVER),
        request=request,
        reply=reply,
        revision=shown.revision,
        etag=_etag_revision(shown.etag),
        expected_etag=_etag_revision(expected) if expected else None,
    )


def _etag_revision(etag: str) -> int:
    return int(etag.strip('"').rpartition("-")[2] or "0", 16)


def expiries(written: Iterable[RowVersion], operations: Iterable[Operation]) -> list[Operation]:
    """The expiries of carts, found in the versions of their rows."""
    deleted: defaultdict[str, list[int]] = defaultdict(list)
    for operation in operations:
        if operation.rpc == "DeleteCart":
            deleted[operation.cart].append(operation.revision)
    last: dict[str, Cart] = {}
    found = []
    for row in (one.row for one in written):
        if not isinstance(row, Cart):
            continue
        name, before = row.key.name, last.get(row.key.name)
        last[name] = row
        known = before is not None and before.uid == row.uid
        if row.state is CartState.EXPIRED and not (known and before and before.state is CartState.EXPIRED):
            found.append(_expiry(name, row.etag_revision))
        if before is None or known or before.state in ENDED:
            continue
        if not any(before.revision < revision <= row.revision for revision in deleted[name]):
            found.append(_expiry(name, before.revision, hidden=True))
    return found


def _expiry(cart: str, revision: int, *, hidden: bool = False) -> Operation:
    return Operation(cart, "Expire", "", 0, FOREVER, None, None, revision, revision, hidden=hidden)


def by_cart(operations: Iterable[Operation]) -> dict[str, list[Operation]]:
    """The operations of each cart by revision. Within one revision, those that always change the cart come first."""
    found: defaultdict[str, list[Operation]] = defaultdict(list)
    for operation in operations:
        found[operation.cart].append(operation)
    for ordered in found.values():
        ordered.sort(key=lambda one: (one.revision, one.hidden, one.rpc not in CHANGES, one.invoked))
    return dict(found)


def apply(quantities: Quantities, operation: Operation) -> None:
    """Apply the operation to `quantities`."""
    request = operation.request
    match operation.rpc:
        case "AddItem" | "BatchAddItems":
            for one in [request] if operation.rpc == "AddItem" else request.requests:
                name = f"{operation.cart}/items/{item_id_of(one.item.sku, one.item.options)}"
                quantities[name] = quantities.get(name, 0) + (one.item.quantity if one.item.HasField("quantity") else 1)
        case "ReplaceItems":
            quantities.clear()
            for item in request.items:
                name = f"{operation.cart}/items/{item_id_of(item.sku, item.options)}"
                quantities[name] = quantities.get(name, 0) + (item.quantity if item.HasField("quantity") else 1)
        case "UpdateItem" if sets_quantity(request):
            quantities[request.item.name] = request.item.quantity
        case "UpdateItem":
            pass
        case "RemoveItem":
            quantities.pop(request.name, None)
        case rpc if rpc in _CLEARING:
            quantities.clear()
        case rpc if rpc not in _OTHER:
            raise ValueError(f"the effect of {rpc} on a cart is not defined here")


def sets_quantity(request: cart_service_pb2.UpdateItemRequest) -> bool:
    """Whether an UpdateItem sets the quantity."""
    if request.HasField("update_mask"):
        return bool({"quantity", "*"}.intersection(request.update_mask.paths))
    return request.item.HasField("quantity")


def sets_only_quantity(request: cart_service_pb2.UpdateItemRequest) -> bool:
    """Whether an UpdateItem sets the quantity and nothing else."""
    if request.HasField("update_mask"):
        return set(request.update_mask.paths) == {"quantity"}
    return request.item.HasField("quantity") and not request.item.HasField("unit_price") and not request.item.labels


def shown(operation: Operation) -> tuple[Mapping[str, int], bool] | None:
    """The quantities that a reply shows, and whether they are the whole cart. None if it shows none."""
    reply: Message | None = operation.reply
    if reply is None or operation.rpc == "RemoveItem":
        return None
    fields = reply.DESCRIPTOR.fields_by_name
    if "cart" in fields:
        return {item.name: item.quantity for item in operation.reply.cart.items}, True
    if "items" in fields:
        return {item.name: item.quantity for item in operation.reply.items}, False
    if "item" in fields:
        return {operation.reply.item.name: operation.reply.item.quantity}, False
    return None


def removed(operation: Operation) -> Mapping[str, int] | None:
    """The quantities of the items that a reply says were removed. None if it says nothing about that."""
    reply: Any = operation.reply
    if reply is None:
        return None
    if operation.rpc == "RemoveItem":
        return {reply.item.name: reply.item.quantity}
    if "removed_items" not in reply.DESCRIPTOR.fields_by_name:
        return None
    return {item.name: item.quantity for item in reply.removed_items}
