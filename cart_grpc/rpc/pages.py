"""The request of ListCarts: its filter and its order. Also the sizes and tokens of the pages of all list methods."""

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import IntEnum
from functools import partial
from typing import Any, TypeVar

from cartgrpc.v1 import cart_service_pb2
from google.protobuf.message import Message

from cart_grpc.carts.model import Cart, CartState
from cart_grpc.names import is_id
from cart_grpc.rpc.fields import Fields
from cart_grpc.store.read.reads import Page

E = TypeVar("E", bound=IntEnum)
M = TypeVar("M", bound=Message)
T = TypeVar("T")
DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 500
# 500 carts may have 10 MB of labels, and clients receive 4 MB by default.
MAX_PAGE_BYTES = 1024 * 1024
_TERM = re.compile(r"state ?= ?([A-Z_]{1,32})")
_ORDER = re.compile(r"(name|create_time|update_time)( (asc|desc))?")
_UNFILTERED = frozenset(CartState) - {CartState.DELETED}


def list_carts(request: cart_service_pb2.ListCartsRequest) -> Page:
    """Return the requested page. Raises InvalidArgument."""
    fields = Fields()
    user = fields.user("parent", request.parent)
    size = page_size(fields, request.page_size)
    form = "`state = X`, or several of these joined with OR"
    has_filter = request.filter.strip()
    states = states_in_filter(fields, request.filter, CartState, form) if has_filter else _UNFILTERED
    order = _ORDER.fullmatch(" ".join(request.order_by.split()) or "name")
    if order is None:
        fields.fault(
            "order_by", "INVALID_ORDER", "must be name, create_time or update_time, optionally followed by ` desc`"
        )
    fields.check()
    page = Page(
        user=user,
        size=size,
        states=states,
        order_by=order.group(1) if order else "name",
        descending=bool(order and order.group(3) == "desc"),
        after=None,
        max_bytes=MAX_PAGE_BYTES,
    )
    restriction, find = "parent, filter or order_by", partial(_find_order_value, page)
    after = find_after(fields, request.page_token, _query(page), restriction, find)
    fields.check()
    return replace(page, after=after)


def next_page_token(page: Page, last: Cart) -> str:
    """Return the token of the page that begins after `last`."""
    return encode_token([_query(page), page.order_value(last), last.key.cart_id])


def page_size(fields: Fields, requested: int) -> int:
    """Return the number of entries on a page: `requested`, or the default for 0, up to MAX_PAGE_SIZE."""
    return min(fields.non_negative("page_size", requested) or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)


def fitting(entries: Sequence[M], size: int) -> Sequence[M]:
    """Return the entries that fit on a page: at most `size` of them, and MAX_PAGE_BYTES unless a single one is longer.

    If it returns fewer than `entries`, there is a next page.
    """
    room = MAX_PAGE_BYTES
    for count, entry in enumerate(entries[:size]):
        room -= entry.ByteSize()
        if room < 0 and count:
            return entries[:count]
    return entries[:size]


def encode_token(content: Sequence[object]) -> str:
    """Return a page token with `content` in it."""
    text = json.dumps(content, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode_token(token: str) -> Any:
    """Return the content of a page token, which may be any JSON value; None if it is not a token."""
    try:
        padded = token + "=" * (-len(token) % 4)
        return json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (ValueError, binascii.Error, RecursionError):
        return None


def find_after(
    fields: Fields, token: str, query: str, restriction: str, find: Callable[[object], T | None]
) -> T | None:
    """Return where a page begins: `find` gets it from the token's content. None for the first page.

    `restriction` names the fields that must be the same as for the previous page. `query` is their hash.
    """
    if not token:
        return None
    match decode_token(token):
        case [str(sent), *content] if (after := find(content)) is not None:
            if sent != query:
                fields.fault("page_token", "INVALID_PAGE_TOKEN", f"was returned for a different {restriction}")
            return after
    fields.fault("page_token", "INVALID_PAGE_TOKEN", "must be the next_page_token of the previous page")
    return None


def states_in_filter(fields: Fields, text: str, kind: type[E], form: str) -> frozenset[E]:
    """Return the states in a filter that is not empty. `form` describes all filters that the method takes."""
    states = set()
    for term in " ".join(text.split()).split(" OR "):
        match = _TERM.fullmatch(term)
        state = kind.__members__.get(match.group(1)) if match else None
        if state is None:
            known = ", ".join(kind.__members__)
            fields.fault("filter", "INVALID_FILTER", f"must be {form}; X is one of {known}")
            break
        states.add(state)
    return frozenset(states)


def is_time(value: object) -> bool:
    """Return whether `value` fits a time column: microseconds since the Unix epoch."""
    return type(value) is int and 0 <= value < 2**63


def query_hash(query: Sequence[object]) -> str:
    """Return a hash of the parts of a request that must be the same for every page."""
    return hashlib.sha256(json.dumps(query).encode()).hexdigest()[:16]


def _find_order_value(page: Page, content: object) -> tuple[int | str, str] | None:
    match content:
        case [int() | str() as value, str(cart_id)] if is_id(cart_id) and _is_order_value(page, value):
            return value, cart_id
    return None


def _is_order_value(page: Page, value: object) -> bool:
    if page.order_by == "name":
        return isinstance(value, str) and is_id(value)
    return is_time(value)


def _query(page: Page) -> str:
    return query_hash((page.user.user_id, sorted(page.states), page.order_by, page.descending))
