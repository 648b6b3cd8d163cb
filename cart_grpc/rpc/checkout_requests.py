"""The requests of callers and operators about checkouts, checked and decoded. Every function raises InvalidArgument."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from cartgrpc.v1 import cart_admin_service_pb2 as admin_pb
from cartgrpc.v1 import cart_service_pb2 as pb

from cart_grpc.carts.checkout_calls import (
    DEFAULT_WINDOW_US,
    MAX_WINDOW_US,
    MIN_WINDOW_US,
    BeginCheckout,
    CancelCheckout,
    CompleteCheckout,
)
from cart_grpc.carts.model import Checkout, CheckoutState
from cart_grpc.carts.totals import MAX_SUBTOTAL
from cart_grpc.names import CheckoutKey, find_checkout
from cart_grpc.rpc import pages
from cart_grpc.rpc.admin_requests import MAX_AGE_SECONDS, MAX_REASON
from cart_grpc.rpc.fields import Fields
from cart_grpc.rpc.requests import every_mutation
from cart_grpc.store.read.checkout_reads import EVERY_STATE, CheckoutPage, OperatorCheckoutPage

MAX_ORDER_REFERENCE: Final = 128
# The states of a checkout that an operator may have to look at.
_STUCK: Final = frozenset({CheckoutState.COMPLETING, CheckoutState.FAILED})
_ORDER_REFERENCE = re.compile(r'\s*order_reference\s*=\s*"((?:[^"\\]|\\["\\])*)"\s*')


def begin_checkout(request: pb.BeginCheckoutRequest) -> BeginCheckout:
    fields = Fields()
    cart = fields.cart("name", request.name)
    window_us = DEFAULT_WINDOW_US
    if request.HasField("window"):
        shortest, longest = MIN_WINDOW_US // 1_000_000, MAX_WINDOW_US // 1_000_000
        window_us = fields.duration("window", request.window, shortest, longest)
    has_subtotal = request.HasField("expected_subtotal")
    subtotal = fields.money("expected_subtotal", request.expected_subtotal, MAX_SUBTOTAL) if has_subtotal else None
    call = BeginCheckout(cart, window_us=window_us, expected_subtotal=subtotal, **every_mutation(fields, request))
    fields.check()
    return call


def complete_checkout(request: pb.CompleteCheckoutRequest) -> CompleteCheckout:
    fields = Fields()
    checkout = fields.checkout("name", request.name)
    reference = fields.text("order_reference", request.order_reference, MAX_ORDER_REFERENCE, least=1)
    call = CompleteCheckout(checkout, order_reference=reference, **every_mutation(fields, request))
    fields.check()
    return call


def cancel_checkout(request: pb.CancelCheckoutRequest) -> CancelCheckout:
    fields = Fields()
    call = CancelCheckout(fields.checkout("name", request.name), **every_mutation(fields, request))
    fields.check()
    return call


def get_checkout(request: pb.GetCheckoutRequest | admin_pb.CartAdminServiceGetCheckoutRequest) -> CheckoutKey:
    fields = Fields()
    checkout = fields.checkout("name", request.name)
    fields.check()
    return checkout


def end_checkout(request: admin_pb.EndCheckoutRequest) -> tuple[CheckoutKey, str]:
    """Return the checkout, and the reason."""
    fields = Fields()
    checkout = fields.checkout("name", request.name)
    reason = fields.text("reason", request.reason, MAX_REASON, least=1)
    fields.check()
    return checkout, reason


def list_checkouts(request: pb.ListCheckoutsRequest) -> CheckoutPage:
    """Return the requested page of a user's checkouts."""
    fields = Fields()
    user = fields.user("parent", request.parent)
    size = pages.page_size(fields, request.page_size)
    states, order_reference = _filter(fields, request.filter)
    fields.check()
    page = CheckoutPage(user, size, states, order_reference, after=None)
    after = _find_after(fields, page, request.page_token)
    fields.check()
    return replace(page, after=after)


def list_checkouts_of_all(request: admin_pb.CartAdminServiceListCheckoutsRequest) -> OperatorCheckoutPage:
    """Return the requested page of all users' checkouts."""
    fields = Fields()
    states = fields.states("states", request.states, CheckoutState)
    reference = fields.text("order_reference", request.order_reference, MAX_ORDER_REFERENCE)
    page = OperatorCheckoutPage(
        size=pages.page_size(fields, request.page_size),
        states=states or (EVERY_STATE if reference else _STUCK),
        min_age_us=fields.duration("min_age", request.min_age, 0, MAX_AGE_SECONDS),
        order_reference=reference,
        after=None,
    )
    fields.check()
    after = _find_after(fields, page, request.page_token)
    fields.check()
    return replace(page, after=after)


def next_page_token(page: CheckoutPage | OperatorCheckoutPage, last: Checkout) -> str:
    """Return the token of the page that begins after `last`."""
    time = last.create_time if isinstance(page, CheckoutPage) else last.update_time
    return pages.encode_token([_query(page), time, last.key.checkout_id])


def _filter(fields: Fields, text: str) -> tuple[frozenset[CheckoutState], str]:
    """Return the states and the order_reference ("" for any) of a filter."""
    if not text.strip():
        return EVERY_STATE, ""
    if found := _ORDER_REFERENCE.fullmatch(text):
        reference = re.sub(r"\\(.)", r"\1", found.group(1))
        return EVERY_STATE, fields.text("filter", reference, MAX_ORDER_REFERENCE, least=1)
    form = '`state = X`, several of these joined with OR, or `order_reference = "..."`'
    return pages.states_in_filter(fields, text, CheckoutState, form), ""


def _find_after(fields: Fields, page: CheckoutPage | OperatorCheckoutPage, token: str) -> tuple[int, str] | None:
    return pages.find_after(fields, token, _query(page), "parent or filter", _find_time_and_id)


def _find_time_and_id(content: object) -> tuple[int, str] | None:
    match content:
        case [int(time), str(checkout_id)] if pages.is_time(time) and _is_id(checkout_id):
            return time, checkout_id
    return None


def _is_id(text: str) -> bool:
    return find_checkout(f"users/x/checkouts/{text}") is not None


def _query(page: CheckoutPage | OperatorCheckoutPage) -> str:
    restriction: Sequence[object] = (sorted(page.states), page.order_reference)
    if isinstance(page, CheckoutPage):
        return pages.query_hash(("user", page.user.user_id, *restriction))
    return pages.query_hash(("all", page.min_age_us, *restriction))
