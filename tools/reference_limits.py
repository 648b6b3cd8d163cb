"""The reference of limits: the constants and settings with which the server checks requests and totals."""

from collections.abc import Sequence
from typing import Final

from cart_grpc import names
from cart_grpc.carts import checkout_calls
from cart_grpc.rpc import checkout_requests, fields, pages, services
from cart_grpc.settings import Settings, variable_of
from cart_grpc.units import format_duration, to_us

PAGE: Final = "reference/limits.md"
_INTRODUCTION: Final = """\
# Limits

This page lists the limits of values, carts, users and calls.

A value beyond its limit fails with [INVALID_FIELD](errors.md#invalid_field), a total with
[LIMIT_EXCEEDED](errors.md#limit_exceeded), and too many calls with [OVERLOADED](errors.md#overloaded),
[TOO_MANY_CALLS](errors.md#too_many_calls) or [TOO_MANY_STREAMS](errors.md#too_many_streams). Removing items always
works. [Capacity](../capacity.md) has the limits of machines.
"""


def page() -> str:
    """Return the page in Markdown."""
    return f"{_INTRODUCTION}\n{_values()}\n{_totals()}\n{_calls()}"


def _values() -> str:
    entry = f"keys of 1 to {fields.MAX_KEY} characters, values of up to {fields.MAX_VALUE}"
    rows = (
        ("ids of users and carts", f"`{names.ID_HINT}`"),
        ("`sku`", f"1 to {fields.MAX_SKU} characters, no control characters"),
        ("`options` of an item", f"{fields.MAX_OPTIONS} entries: {entry}"),
        ("`labels` of an item or a cart", f"{fields.MAX_LABELS} entries: {entry}"),
        ("`unit_price`", f"0 to {fields.MAX_MINOR_UNITS:,} in the smallest unit of the currency"),
        ("`ttl` of a cart", _between(fields.MIN_TTL_SECONDS * 1_000_000, fields.MAX_TTL_SECONDS * 1_000_000)),
        ("`max_wait`", _between(0, fields.MAX_WAIT_SECONDS * 1_000_000)),
        ("`window` of a checkout", _between(checkout_calls.MIN_WINDOW_US, checkout_calls.MAX_WINDOW_US)),
        ("`order_reference`", f"1 to {checkout_requests.MAX_ORDER_REFERENCE} characters, no control characters"),
        ("`page_size`", f"{pages.DEFAULT_PAGE_SIZE} if unset, {pages.MAX_PAGE_SIZE} at most"),
    )
    return _table("Values", ("value", "limit"), rows)


def _totals() -> str:
    rows = [
        ("units that one call adds", "max_quantity_per_add"),
        ("units of one item", "max_quantity_per_item"),
        ("items of a cart", "max_items_per_cart"),
        ("bytes of an encoded cart", "max_cart_bytes"),
        ("carts of a user that have not ended", "max_carts_per_user"),
        ("items in all carts of a user", "max_items_per_user"),
        ("units in all carts of a user", "max_units_per_user"),
        ("bytes that are stored for a user", "max_user_bytes"),
        ("time without a change until a cart expires", "cart_ttl"),
        ("time for which a `request_id` gets its reply", "reply_retention"),
        ("time for which an ended cart can be read", "cart_retention"),
        ("time for which an ended checkout can be read", "checkout_retention"),
    ]
    return _table("Carts and users", ("total", "default", "setting"), [_setting(*row) for row in rows])


def _calls() -> str:
    settings = (
        ("running calls of the server", "max_calls"),
        ("running calls of one user", "max_calls_per_user"),
        ("running calls of one service", "max_calls_per_service"),
        ("waiting calls of the server", "max_waiting_calls"),
        ("waiting calls of one user", "max_waiting_calls_per_user"),
        ("queued writes", "write_queue_size"),
        ("duration of a call without its `max_wait`", "call_timeout"),
    )
    fixed = (
        ("streams of a connection", f"{services.MAX_STREAMS_PER_CONNECTION:,}", "fixed"),
        ("streams of a user", f"{services.MAX_STREAMS_PER_USER:,}", "fixed"),
        ("streams of a service", f"{services.MAX_STREAMS_PER_SERVICE:,}", "fixed"),
        ("streams of a server", f"{services.MAX_STREAMS:,}", "fixed"),
    )
    rows = [*(_setting(*row) for row in settings), *fixed]
    return _table("Calls and streams of one process", ("limit", "default", "setting"), rows)


def _setting(what: str, name: str) -> tuple[str, str, str]:
    value, variable = getattr(Settings(), name), variable_of(name)
    return what, format_duration(to_us(value)) if isinstance(value, float) else f"{value:,}", f"`{variable}`"


def _between(least_us: int, most_us: int) -> str:
    return f"{format_duration(least_us) if least_us else 0} to {format_duration(most_us)}"


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return f"## {title}\n\n" + "\n".join(f"| {' | '.join(_escape(cell) for cell in line)} |" for line in lines) + "\n"


def _escape(cell: str) -> str:
    return cell.replace("|", "\\|")
