"""The check by revisions agrees with a brute-force search over all orders of the operations."""

import random
from collections.abc import Sequence
from dataclasses import replace

from cartgrpc.v1 import cart_pb2, cart_service_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from cart_grpc.names import item_id_of
from tests.invariants.operations import Operation
from tests.invariants.revisions import check_revisions

CART = "users/a/carts/c"
NAMES = {sku: f"{CART}/items/{item_id_of(sku, {})}" for sku in ("x", "y")}
Quantities = dict[str, int]


def _operation(kind: str, sku: str, quantity: int, revision: int, etag: int, shown: Quantities) -> Operation:
    """An operation that was answered at `revision`, with the etag of revision `etag`.

    `shown` is the cart after it; before it, if it removes an item.
    """
    name = NAMES[sku]
    item = cart_pb2.Item(name=name, quantity=shown.get(name, 0))
    if kind == "AddItem":
        request = cart_service_pb2.AddItemRequest(parent=CART, item=cart_pb2.Item(sku=sku, quantity=quantity))
        return _answered(kind, request, cart_service_pb2.AddItemResponse(item=item), revision, etag)
    if kind == "UpdateItem":
        update = cart_service_pb2.UpdateItemRequest(item=cart_pb2.Item(name=name, quantity=quantity))
        return _answered(kind, update, cart_service_pb2.UpdateItemResponse(item=item), revision, etag)
    if kind == "RemoveItem":
        removal = cart_service_pb2.RemoveItemRequest(name=name)
        return _answered(kind, removal, cart_service_pb2.RemoveItemResponse(item=item), revision, etag)
    items = [cart_pb2.Item(name=name, quantity=quantity) for name, quantity in shown.items()]
    cart = cart_service_pb2.GetCartResponse(cart=cart_pb2.Cart(items=items))
    return _answered("GetCart", cart_service_pb2.GetCartRequest(name=CART), cart, revision, etag)


def _answered(rpc: str, request: object, reply: object, revision: int, etag: int) -> Operation:
    return Operation(CART, rpc, "", 0, 0, request, reply, revision, etag)


def _step(quantities: Quantities, kind: str, sku: str, quantity: int) -> Quantities | None:
    """The cart after the operation, or None if the item does not exist."""
    name = NAMES[sku]
    if kind == "AddItem":
        return {**quantities, name: quantities.get(name, 0) + quantity}
    if kind == "GetCart":
        return quantities
    if name not in quantities:
        return None
    if kind == "UpdateItem":
        return {**quantities, name: quantity}
    return {other: held for other, held in quantities.items() if other != name}


def a_history(rng: random.Random, count: int) -> list[Operation]:
    """A linearizable history, then changed at up to two places."""
    revision = etag = 0
    quantities: Quantities = {}
    history: list[Operation] = []
    while len(history) < count:
        kind = rng.choice(("AddItem", "AddItem", "UpdateItem", "RemoveItem", "GetCart"))
        sku, quantity, expected = rng.choice("xy"), rng.randint(1, 2), etag
        after = _step(quantities, kind, sku, quantity)
        if after is None:
            continue
        # The reconciler raises revisions, too.
        revision += rng.choice((0, 0, 1))
        if kind == "AddItem" or after != quantities:
            revision = etag = revision + 1
        at = 10 * len(history)
        one = _operation(kind, sku, quantity, revision, etag, quantities if kind == "RemoveItem" else after)
        quantities = after
        one = replace(one, invoked=at - rng.randint(0, 25), returned=at + rng.randint(0, 25))
        history.append(replace(one, expected_etag=expected) if rng.random() < 0.2 else one)
    for _ in range(rng.choice((0, 1, 1, 2))):
        index = rng.randrange(count)
        history[index] = _spoiled(rng, history[index])
    rng.shuffle(history)
    return history


def _spoiled(rng: random.Random, one: Operation) -> Operation:
    shift = rng.choice((-2, -1, 1, 2))
    match rng.randrange(5):
        case 0:
            return replace(one, revision=max(1, one.revision + shift))
        case 1:
            return replace(one, revision=max(1, one.revision + shift), etag=max(1, one.etag + shift))
        case 2:
            return replace(one, invoked=one.invoked + 20 * shift, returned=one.returned + 20 * shift)
        case 3 if one.expected_etag is not None:
            return replace(one, expected_etag=one.expected_etag + shift)
        case _ if one.rpc in ("AddItem", "UpdateItem", "RemoveItem"):
            reply = type(one.reply)()
            reply.CopyFrom(one.reply)
            reply.item.quantity += shift
            return replace(one, reply=reply)
    return one


def is_linearizable(history: Sequence[Operation]) -> bool:
    """Whether any order explains all answers: tries every order that agrees with real time."""
    return _explain(list(history), 0, 0, {})


def _explain(left: list[Operation], revision: int, etag: int, quantities: Quantities) -> bool:
    if not left:
        return True
    for one in left:
        if any(other.returned < one.invoked for other in left if other is not one):
            continue
        after = _follow(one, revision, etag, quantities)
        if after is not None:
            rest = [other for other in left if other is not one]
            if _explain(rest, one.revision, *after):
                return True
    return False


def _follow(one: Operation, revision: int, etag: int, quantities: Quantities) -> tuple[int, Quantities] | None:
    """The last change and the cart after `one`, or None if its answer contradicts the state before it."""
    if one.expected_etag not in (None, etag):
        return None
    after = _step(quantities, one.rpc, *_asked(one))
    if after is None:
        return None
    is_change = one.rpc in ("AddItem", "RemoveItem") or after != quantities
    last = one.revision if is_change else etag
    if one.revision < revision + is_change or one.etag != last:
        return None
    if one.rpc == "GetCart" and {item.name: item.quantity for item in one.reply.cart.items} != after:
        return None
    if one.rpc == "RemoveItem" and one.reply.item.quantity != quantities[one.reply.item.name]:
        return None
    if one.rpc in ("AddItem", "UpdateItem") and one.reply.item.quantity != after[one.reply.item.name]:
        return None
    return last, after


def _asked(one: Operation) -> tuple[str, int]:
    if one.rpc == "GetCart":
        return "x", 0
    name = one.reply.item.name if one.rpc == "AddItem" else getattr(one.request, "name", "") or one.request.item.name
    sku = next(sku for sku in NAMES if NAMES[sku] == name)
    return sku, 0 if one.rpc == "RemoveItem" else one.request.item.quantity


@settings(max_examples=500)
@given(st.randoms(use_true_random=False), st.integers(1, 8))
def test_the_check_reports_a_violation_exactly_if_no_order_explains_the_answers(rng: random.Random, count: int) -> None:
    history = a_history(rng, count)
    said = check_revisions(history)
    assert (said == []) == is_linearizable(history), (said, [str(one) for one in history])


def test_about_half_of_the_histories_are_linearizable() -> None:
    verdicts = [is_linearizable(a_history(random.Random(seed), 6)) for seed in range(300)]
    assert 60 < sum(verdicts) < 240
