"""The rows of a simulation's database, of all its shards, read outside every transaction."""

import sqlite3
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from cart_grpc.protocol.reservation import Disposition
from cart_grpc.store.clock_steps import ClockRow


class ReservationRow(NamedTuple):
    """A row of the table `reservations`: the columns that the checks and the trace use."""

    reservation_id: str
    revision: int
    intent_revision: int
    observed_revision: int
    lease_epoch: int
    state: int
    disposition: int
    quantity: int
    granted_quantity: int
    due_time: int | None
    lease_expire_time: int | None
    attempt_count: int
    reserved_cap: int
    expire_time: int | None
    waiting: int
    last_error: str
    reason: str
    seal_reason: str
    finish_time: int | None
    uncertain_until: int | None
    ttl_us: int
    user_id: str
    cart_id: str
    item_id: str
    checkout_id: str
    superseded_by: str
    shard: int

    @property
    def is_of_cart(self) -> bool:
        return not self.checkout_id or self.disposition == Disposition.HOLD

    @property
    def settled(self) -> bool:
        return self.observed_revision >= self.revision


class CartRow(NamedTuple):
    """A row of the table `carts`: the columns that the checks use."""

    slice: int
    user_id: str
    cart_id: str
    state: int
    revision: int
    etag_revision: int
    uid: str
    expire_time: int | None
    checkout_id: str
    merged_into: str

    @property
    def name(self) -> str:
        return f"users/{self.user_id}/carts/{self.cart_id}"


class ReservedItem(NamedTuple):
    """An item and its reservation. The reservation's columns are None if it has no row."""

    cart_id: str
    user_id: str
    sku: str
    quantity: int
    reservation_id: str | None
    state: int | None
    granted_quantity: int | None
    expire_time: int | None
    seal_reason: str | None
    reason: str | None
    reserved_sku: str | None
    disposition: int | None


_RESERVATIONS = f"SELECT {', '.join(ReservationRow._fields)} FROM all_reservations"  # noqa: S608 - our own columns' names
_CARTS = f"SELECT {', '.join(CartRow._fields)} FROM all_carts"  # noqa: S608 - our own columns' names
_CHECKOUTS = (
    "SELECT user_id, checkout_id, cart_id, cart_uid, state, order_reference, is_ready, expire_time FROM all_checkouts"
)
_CLOCK = f"SELECT shard, {', '.join(ClockRow._fields)} FROM all_clock"  # noqa: S608 - our own columns' names
_ITEMS = (
    "SELECT i.cart_id, i.user_id, i.sku, i.quantity, r.reservation_id, r.state, r.granted_quantity, "
    "r.expire_time, r.seal_reason, r.reason, r.sku, r.disposition FROM all_items i "
    "LEFT JOIN all_reservations r USING (slice, reservation_id)"
)


def read_reservations(raw: sqlite3.Connection) -> list[ReservationRow]:
    """All rows of reservations."""
    return list(map(ReservationRow._make, raw.execute(_RESERVATIONS)))


def read_carts(raw: sqlite3.Connection) -> Iterator[CartRow]:
    """All rows of carts."""
    return map(CartRow._make, raw.execute(_CARTS))


class CheckoutRow(NamedTuple):
    """A row of the table `checkouts`: the columns that the checks use."""

    user_id: str
    checkout_id: str
    cart_id: str
    cart_uid: str
    state: int
    order_reference: str
    is_ready: int
    expire_time: int

    @property
    def name(self) -> str:
        return f"users/{self.user_id}/checkouts/{self.checkout_id}"


def read_checkouts(raw: sqlite3.Connection) -> list[CheckoutRow]:
    """All rows of checkouts."""
    return [CheckoutRow._make(row) for row in raw.execute(_CHECKOUTS)]


def read_checkout_items(raw: sqlite3.Connection) -> Iterator[tuple[str, str, int, str]]:
    """All items of checkouts: checkout id, sku, quantity, reservation id."""
    return raw.execute("SELECT checkout_id, sku, quantity, reservation_id FROM all_checkout_items")


def read_clock(raw: sqlite3.Connection) -> dict[int, ClockRow]:
    """The row of the last step of the clock in each shard that has one."""
    return {shard: ClockRow._make(row) for shard, *row in raw.execute(_CLOCK)}


def find_paused(raw: sqlite3.Connection) -> AbstractSet[int]:
    """The shards in which an operator has stopped all claims."""
    return {shard for (shard,) in raw.execute("SELECT shard FROM all_pauses")}


def read_items(raw: sqlite3.Connection) -> Iterator[ReservedItem]:
    """All items with their reservations."""
    return map(ReservedItem._make, raw.execute(_ITEMS))
