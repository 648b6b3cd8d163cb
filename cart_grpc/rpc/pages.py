"""ListCarts: its filter, its order, and the tokens that say where the next page begins."""

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any

from cartgrpc.v1 import cart_service_pb2

from cart_grpc.carts.model import Cart, CartState
from cart_grpc.names import is_id
from cart_grpc.rpc.fields import Fields
from cart_grpc.store.read.reads import Page

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 500
_TERM = re.compile(r"state ?= ?([A-Z_]{1,32})")
_ORDER = re.compile(r"(name|create_time|update_time)( (asc|desc))?")
_UNFILTERED = frozenset(CartState) - {CartState.DELETED}


def list_carts(request: cart_service_pb2.ListCartsRequest) -> Page:
    """The page that is asked for. Raises InvalidArgument."""
    fields = Fields()
    user = fields.user("parent", request.parent)
    size = page_size(fields, request.page_size)
    states = _states(fields, request.filter)
    order = _ORDER.fullmatch(" ".join(request.order_by.split()) or "name")
    if order is None:
        fields.fault("order_by", "INVALID_ORDER", "must be name, create_time or update_time, with ` desc` if wanted")
    fields.check()
    page = Page(
        user=user,
        size=size,
        states=states,
        order_by=order.group(1) if order else "name",
        descending=bool(order and order.group(3) == "desc"),
        after=None,
    )
    after = _decode(fields, page, request.page_token) if request.page_token else None
    fields.check()
    return Page(page.user, page.size, page.states, page.order_by, page.descending, after)


def next_page_token(page: Page, last: Cart) -> str:
    """The token of the page that begins after `last`."""
    value = last.key.cart_id if page.order_by == "name" else getattr(last, page.order_by)
    return encode_token([_query(page), value, last.key.cart_id])


def page_size(fields: Fields, asked: int) -> int:
    """How many at most, where `asked` is what the request says."""
    return min(fields.least("page_size", asked) or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)


def encode_token(content: Sequence[object]) -> str:
    """A page token that holds `content`."""
    text = json.dumps(content, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode_token(token: str) -> Any:
    """What a page token holds, which may be anything; None where it is none."""
    try:
        padded = token + "=" * (-len(token) % 4)
        return json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (ValueError, binascii.Error, RecursionError):
        return None


def is_time(value: object) -> bool:
    """Whether it can be a time in microseconds, as the database has it."""
    return type(value) is int and 0 <= value < 2**63


def query_hash(query: Sequence[object]) -> str:
    """What must be the same from page to page."""
    return hashlib.sha256(json.dumps(query).encode()).hexdigest()[:16]


def _states(fields: Fields, text: str) -> frozenset[CartState]:
    if not text.strip():
        return _UNFILTERED
    states = set()
    for term in " ".join(text.split()).split(" OR "):
        match = _TERM.fullmatch(term)
        state = CartState.__members__.get(match.group(1)) if match else None
        if state is None:
            known = ", ".join(CartState.__members__)
            fields.fault("filter", "INVALID_FILTER", f"must be `state = X`, joined with OR; X is one of {known}")
            break
        states.add(state)
    return frozenset(states)


def _decode(fields: Fields, page: Page, token: str) -> tuple[int | str, str] | None:
    match decode_token(token):
        case [str(query), value, str(cart_id)] if is_id(cart_id) and _is_order_value(page, value):
            if query != _query(page):
                fields.fault("page_token", "INVALID_PAGE_TOKEN", "belongs to another parent, filter or order_by")
            return value, cart_id
    fields.fault("page_token", "INVALID_PAGE_TOKEN", "must be next_page_token of the page before")
    return None


def _is_order_value(page: Page, value: object) -> bool:
    if page.order_by == "name":
        return isinstance(value, str) and is_id(value)
    return is_time(value)


def _query(page: Page) -> str:
    return query_hash((page.user.user_id, sorted(page.states), page.order_by, page.descending))
