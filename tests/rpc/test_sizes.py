"""No encoding of a cart is longer than the cart counts, whatever is stored in it."""

import itertools

import pytest
from cartgrpc.v1 import cart_service_pb2
from hypothesis import given
from hypothesis import strategies as st

from cart_grpc.carts.calls import AddItems, CartUpdate, CreateCart, Given, Limits, LoadedCart, addition
from cart_grpc.carts.model import Cart, Line, Money
from cart_grpc.carts.rules import decide
from cart_grpc.names import cart_key, user_key
from cart_grpc.protocol.reservation import Disposition, Observed, Reservation
from cart_grpc.rpc.fields import MAX_KEY, MAX_LABELS, MAX_MINOR_UNITS, MAX_OPTIONS, MAX_SKU, MAX_VALUE
from cart_grpc.rpc.messages import cart_message
from tests.carts.examples import numbered_ids

KEY = cart_key(user_key("u" * 128), "c" * 128)
LATE = 253_402_300_799_999_999  # the last microsecond that a Timestamp can have
UUID = "01a2222a-ef15-77cf-a670-fe33c9d0a8e4"
TEXT = st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1, max_size=8)
ENTRIES = st.dictionaries(TEXT, TEXT, max_size=3)


def encoded(cart: Cart, lines: list[Line], now: int) -> int:
    """The length of the reply to GetCart."""
    message = cart_message(cart, lines, now, reconciling=True)
    return len(cart_service_pb2.GetCartResponse(cart=message).SerializeToString())


def largest(entries: int) -> dict[str, str]:
    return {f"{number:02}".ljust(MAX_KEY, "\U0001f375"): "\U0001f375" * MAX_VALUE for number in range(entries)}


def the_longest_line(cart: Cart, sku: str, row: Reservation) -> tuple[Cart, Line]:
    """A cart with one item, in which every field has its longest value."""
    one = addition(sku, largest(MAX_OPTIONS), 1_000_000, Money("EUR", MAX_MINOR_UNITS), largest(MAX_LABELS))
    limits = Limits(max_quantity_per_item=1_000_000, max_cart_bytes=1 << 20)
    loaded = LoadedCart(KEY, cart, {}, frozenset())
    change = decide(loaded, AddItems(KEY, (one,)), Given(limits, LATE, lambda: UUID))
    (line,) = change.lines
    return change.cart, Line(line.item, row._replace(sku=sku, quantity=1_000_000))


ROW = Reservation(
    reservation_id=UUID, cart=KEY, item_id="0" * 32, sku="", quantity=1, disposition=Disposition.HOLD, ttl_us=1,
    revision=2**60, intent_revision=2**60, reserved_cap=1_000_000, create_time=0, due_time=LATE,
    attempt_count=2**31 - 1, granted_quantity=1_000_000, expire_time=LATE, observed_revision=2**60 - 1,
    reason="R" * 63, last_error="E" * 63 + ": " + "e" * 300,
)  # fmt: skip


@pytest.mark.parametrize(
    ("state", "is_sealed", "is_answered"),
    list(itertools.product(Observed, [False, True], [False, True])),
)
def test_the_longest_cart_is_no_longer_than_it_counts(state: Observed, is_sealed: bool, is_answered: bool) -> None:
    limits = Limits(max_cart_bytes=1 << 20)
    empty = LoadedCart(KEY, None, {}, frozenset())
    made = decide(empty, CreateCart(KEY, CartUpdate(set(), largest(MAX_LABELS), "EUR", 31_536_000_000_000)),
                  Given(limits, LATE, lambda: UUID)).cart  # fmt: skip
    row = ROW._replace(state=state, seal_reason="S" * 63 if is_sealed else "")
    if is_answered:
        row = row._replace(observed_revision=row.revision)
    cart, line = the_longest_line(made, "\U0001f375" * MAX_SKU, row)
    cart = cart._replace(revision=2**60, etag_revision=2**60, total_quantity=10**9, subtotal=2**62)
    for now in (0, LATE):
        length = encoded(cart, [line], now)
        assert length <= cart.byte_size
        assert encoded(cart._replace(checkout_id=UUID), [line], now) <= cart.byte_size
        assert encoded(cart._replace(merged_into=KEY.name), [line], now) <= cart.byte_size
        # The room for the fields with a fixed length is not much too large either.
        assert cart.byte_size - length < 1_400


@given(st.lists(st.builds(addition, TEXT, ENTRIES, st.integers(1, 9), st.none(), ENTRIES), max_size=4), ENTRIES)
def test_a_cart_counts_at_least_its_encoding(additions: list[object], labels: dict[str, str]) -> None:
    given_ = Given(Limits(), LATE, numbered_ids())
    empty = LoadedCart(KEY, None, {}, frozenset())
    change = decide(empty, CreateCart(KEY, CartUpdate(set(), labels)), given_)
    if additions:
        change = decide(empty._replace(cart=change.cart), AddItems(KEY, additions), given_)  # type: ignore[arg-type]
    assert encoded(change.cart, list(change.lines), 0) <= change.cart.byte_size
