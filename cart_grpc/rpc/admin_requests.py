"""The requests of `cartgrpc.v1.CartAdminService`, checked and decoded. Every function raises InvalidArgument."""

import re
from dataclasses import replace

from cartgrpc.v1 import cart_admin_service_pb2 as pb

from cart_grpc.carts.model import CartState
from cart_grpc.names import ID_HINT, CartKey, UserKey, find_cart, find_reservation, find_user, is_id, user_key
from cart_grpc.rpc import pages
from cart_grpc.rpc.fields import MAX_SKU, Fields
from cart_grpc.store.read.cart_search import CartSearch
from cart_grpc.store.read.operator_reads import (
    BACKLOG,
    WorkState,
)
from cart_grpc.store.read.reservation_search import Position, ReservationPage

MAX_REASON = 256
MAX_AGE_SECONDS = 10 * 365 * 24 * 3600
_PREFIX = re.compile(r"[A-Za-z0-9._~@|:+-]{0,128}")
Named = pb.GetReservationRequest | pb.CartAdminServiceRetryReservationRequest | pb.ReleaseReservationRequest


def reservation_id(request: Named) -> str:
    """Return the id of the reservation."""
    fields = Fields()
    found = fields.reservation("name", request.name)
    fields.check()
    return found


def release(request: pb.ReleaseReservationRequest) -> tuple[str, str]:
    """Return the id of the reservation, and the reason."""
    fields = Fields()
    found = fields.reservation("name", request.name)
    reason = fields.text("reason", request.reason, MAX_REASON, least=1)
    fields.check()
    return found, reason


def pause(request: pb.PauseReservationsRequest) -> str:
    """Return the reason."""
    fields = Fields()
    reason = fields.text("reason", request.reason, MAX_REASON, least=1)
    fields.check()
    return reason


def list_reservations(request: pb.ListReservationsRequest) -> ReservationPage:
    """Return the requested page."""
    fields = Fields()
    states = fields.states("states", request.states, WorkState)
    page = ReservationPage(
        size=pages.page_size(fields, request.page_size),
        states=states or BACKLOG,
        min_age_us=fields.duration("min_age", request.min_age, 0, MAX_AGE_SECONDS),
        min_attempts=fields.non_negative("min_attempt_count", request.min_attempt_count),
        after=None,
        parent=_parent(fields, request.parent) if request.parent else None,
        sku=fields.text("sku", request.sku, MAX_SKU),
    )
    fields.check()
    after = pages.find_after(fields, request.page_token, _query(page), "filter", _find_position)
    fields.check()
    return replace(page, after=after)


def next_page_token(page: ReservationPage, after: Position) -> str:
    """Return the token of the page that begins after `after`."""
    return pages.encode_token([_query(page), *after])


def _parent(fields: Fields, name: str) -> UserKey | CartKey | None:
    found = find_cart(name) or find_user(name)
    if found is None:
        fields.fault("parent", "INVALID_NAME", f"must be users/{{user}} or users/{{user}}/carts/{{cart}}; {ID_HINT}")
    return found


def list_carts(request: pb.CartAdminServiceListCartsRequest) -> CartSearch:
    """Return the requested page."""
    fields = Fields()
    states = fields.states("states", request.states, CartState)
    if not _PREFIX.fullmatch(request.user_prefix):
        fields.fault("user_prefix", "INVALID_ID", "must be the beginning of a user id: up to 128 of A-Za-z0-9._~@|:+-")
    search = CartSearch(
        size=pages.page_size(fields, request.page_size),
        user_prefix=request.user_prefix,
        states=states,
        min_age_us=fields.duration("min_age", request.min_age, 0, MAX_AGE_SECONDS),
        sku=fields.text("sku", request.sku, MAX_SKU),
        after=None,
    )
    fields.check()
    after = pages.find_after(fields, request.page_token, _cart_query(search), "filter", _find_cart_key)
    fields.check()
    return replace(search, after=after)


def next_cart_token(search: CartSearch, last: CartKey) -> str:
    """Return the token of the page that begins after `last`."""
    return pages.encode_token([_cart_query(search), *last])


def erase_user(request: pb.EraseUserRequest) -> UserKey:
    """Return the user."""
    fields = Fields()
    found = fields.user("name", request.name)
    fields.check()
    return found


def _find_cart_key(content: object) -> CartKey | None:
    match content:
        case [int(slice_), str(user_id), str(cart_id)] if (
            is_id(user_id) and is_id(cart_id) and user_key(user_id).slice == slice_
        ):
            return CartKey(slice_, user_id, cart_id)
    return None


def _cart_query(search: CartSearch) -> str:
    return pages.query_hash((search.user_prefix, sorted(search.states), search.min_age_us, search.sku))


def _find_position(content: object) -> Position | None:
    match content:
        case [int(time), str(reservation_id)] if pages.is_time(time) and _is_id(reservation_id):
            return time, reservation_id
    return None


def _is_id(text: str) -> bool:
    return find_reservation(f"reservations/{text}") is not None


def _query(page: ReservationPage) -> str:
    parent = page.parent.name if page.parent else ""
    return pages.query_hash((sorted(page.states), page.min_age_us, page.min_attempts, parent, page.sku))
