"""The plain model: it takes each call and its outcome, and says whether the outcome is right."""

from copy import deepcopy
from typing import Any

from cartgrpc.v1 import cart_pb2
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from tests.state_machine import calls, checkouts, merges
from tests.state_machine.carts import Cart, Checkout, Refused

RULES = {**calls.RULES, **merges.RULES, **checkouts.RULES}
# The fields of a checkout that never change.
FIXED = FieldMask(paths=["name", "cart", "cart_uid", "item_count", "total_quantity", "subtotal", "expire_time"])

# A reply, or the reason of a refusal.
Outcome = Message | str


class Stored:
    """An answered request with a request_id."""

    def __init__(self, method: str, request: Any, reply: Any) -> None:
        self.method = method
        self.request = request
        self.reply = reply


class Model:
    """All carts and checkouts by name, and the answered requests by user and request_id."""

    def __init__(self) -> None:
        self.carts: dict[str, Cart] = {}
        self.checkouts: dict[str, Checkout] = {}
        self.stored: dict[tuple[str, str], Stored] = {}

    def after(self, *calls: tuple[str, Any, Outcome]) -> "Model":
        """The model after `calls`, each with its outcome, in this order. Raises AssertionError if one is wrong."""
        model = deepcopy(self)
        for method, request, outcome in calls:
            model._check(method, request, outcome)
        return model

    def _check(self, method: str, request: Any, outcome: Outcome) -> None:
        key = (user_of(request), getattr(request, "request_id", ""))
        if key in self.stored and key[1]:
            self._check_replay(self.stored[key], method, request, outcome)
            return
        refusal = self._find_refusal(method, request, outcome)
        if refusal:
            assert outcome == refusal, f"{method} must be refused with {refusal}, not {outcome!r}"
            return
        assert not isinstance(outcome, str), f"{method} was refused: {outcome}"
        if key[1]:
            self.stored[key] = Stored(method, request, outcome)

    def _find_refusal(self, method: str, request: Any, outcome: Outcome) -> str | None:
        """The reason for which the model refuses the call. None: it has taken place, and its reply is right."""
        try:
            RULES[method](self, request, outcome)
        except Refused as refused:
            return refused.reason
        return None

    def _check_replay(self, stored: Stored, method: str, request: Any, outcome: Outcome) -> None:
        if (method, body(request)) != (stored.method, body(stored.request)):
            assert outcome == "REQUEST_ID_REUSED", f"another body under a request_id got {outcome!r}"
            return
        assert not isinstance(outcome, str), f"a repeated {method} was refused: {outcome}"
        waits = any(one.HasField("max_wait") for one in (request, stored.request))
        shown = [without_progress(one) if waits else one for one in (outcome, stored.reply)]
        assert serialized(shown[0]) == serialized(shown[1]), "a repeated call got another reply"


def user_of(request: Any) -> str:
    """The user whose request_ids the request uses: `users/{user}`."""
    return "/".join(named(request).split("/")[:2])


def named(request: Any) -> str:
    """The resource that the request names first."""
    for field in ("parent", "name"):
        if name := getattr(request, field, ""):
            return str(name)
    return str(request.item.name if "item" in request.DESCRIPTOR.fields_by_name else request.cart.name)


def body(request: Any) -> bytes:
    """The part of a request that a repetition must have, too."""
    copy = type(request)()
    copy.CopyFrom(request)
    copy.ClearField("request_id")
    copy.ClearField("max_wait")
    return serialized(copy)


def serialized(message: Any) -> bytes:
    raw: bytes = message.SerializeToString(deterministic=True)
    return raw


def without_progress(reply: Any) -> Any:
    """The reply without the progress of reservations, which a reply to a call with max_wait shows as it is now."""
    copy = type(reply)()
    copy.CopyFrom(reply)
    _clear_progress(copy)
    return copy


def _clear_progress(message: Any) -> None:
    if isinstance(message, cart_pb2.Checkout):
        whole = cart_pb2.Checkout()
        whole.CopyFrom(message)
        message.Clear()
        FIXED.MergeMessage(whole, message)
        return
    for name in ("reservation", "reconciling"):
        if name in message.DESCRIPTOR.fields_by_name:
            message.ClearField(name)
    for name in ("item", "items", "cart", "checkout", "removed_items"):
        if name in message.DESCRIPTOR.fields_by_name:
            inner = getattr(message, name)
            for one in inner if name.endswith("items") else [] if isinstance(inner, str) else [inner]:
                _clear_progress(one)
