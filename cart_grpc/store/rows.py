"""How each table's rows are read and written: one mapping for each table, from column name to field.

A row is a sequence of values in the order of the table's columns. Each mapping is compiled once into two functions, as
`collections.namedtuple` does it: a mapping that is followed for each row costs several times as much.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar, get_type_hints

from sqlalchemy import Table

from cart_grpc.carts.model import Cart, CartState, Checkout, CheckoutState, Item
from cart_grpc.names import CartKey, CheckoutKey, UserKey
from cart_grpc.protocol.reservation import Disposition, Observed, Reservation
from cart_grpc.store import schema
from cart_grpc.store.clock_steps import ClockRow

Row = Sequence[Any]
V = TypeVar("V", bound=tuple[Any, ...])


class Stored(NamedTuple):
    """One column: the field that it stores, and how the value changes on the way. None: it is stored as it is.

    `field` names a field of the value, such as `sku`, or a field of a key in it, such as `cart.user_id`. A property,
    such as `expire_time` of a cart, is written and never read back.
    """

    field: str
    read: Callable[[Any], Any] | None = None
    write: Callable[[Any], Any] | None = None


class StoredReply(NamedTuple):
    """One row of `replies`: the reply that a request_id got, and the fingerprint of that request."""

    user: UserKey
    request_id: str
    fingerprint: bytes
    reply: bytes
    create_time: int


class CommitMarker(NamedTuple):
    """Identifies one batch in the database: its writer and that writer's count of batches.

    The batch's own transaction writes it. So if a COMMIT breaks, the marker tells whether it happened.
    """

    writer_id: str
    batch_number: int


class CommitMarkerRow(NamedTuple):
    """One row of `commit_markers`: the last batch that a writer committed."""

    slice: int
    marker: CommitMarker
    update_time: int


class UserRow(NamedTuple):
    """One row of `users`: each writer locks it, and it has the totals of the user."""

    user: UserKey
    stored_bytes: int = 0
    cart_count: int = 0
    item_count: int = 0
    unit_count: int = 0
    erase_time: int | None = None


class CheckoutItemRow(NamedTuple):
    """One row of `checkout_items`: an item that has passed to a checkout."""

    checkout: CheckoutKey
    item_id: str
    cart_id: str
    uid: str
    sku: str
    options: Mapping[str, str]
    quantity: int
    unit_price: int | None
    labels: Mapping[str, str]
    reservation_id: str
    create_time: int
    update_time: int


class PauseRow(NamedTuple):
    """One row of `pauses`: what an operator has paused, and why."""

    slice: int
    name: str
    reason: str
    create_time: int


class RowMapping(Generic[V]):
    """Reads rows of one table as values of `value_type`, and writes them.

    `columns` has one entry for each column of the table. Raises ValueError if a column or a field is missing.
    """

    def __init__(self, table: Table, value_type: type[V], columns: Mapping[str, Stored]) -> None:
        if columns.keys() != set(table.columns.keys()):
            raise ValueError(f"{table.name}: not every column has exactly one mapping")
        self.table = table
        self.columns = {name: columns[name] for name in table.columns.keys()}  # noqa: SIM118 - it is no dict
        self.to_value: Callable[[Row], V] = _compile_reader(value_type, self.columns)
        self.to_row: Callable[[V], tuple[Any, ...]] = _compile_writer(value_type, self.columns)


def _compile_reader(value_type: type[Any], columns: Mapping[str, Stored]) -> Callable[[Row], Any]:
    """Return `def read(row): slice, user_id, … = row; return new(Type, (Key(slice, user_id), …))`."""
    functions: dict[str, Any] = {"new": tuple.__new__, "Type": value_type}
    by_field: dict[str, str] = {}
    for name, (field, convert, _) in columns.items():
        if convert:
            functions[f"read_{name}"] = convert
        by_field[field] = f"read_{name}({name})" if convert else name
    types = get_type_hints(value_type)
    values = []
    for field in value_type._fields:
        if field in by_field:
            values.append(by_field[field])
            continue
        # A key that is stored in several columns.
        functions[f"Key_{field}"] = key = types[field]
        parts = [by_field.get(f"{field}.{part}") for part in getattr(key, "_fields", ("",))]
        if None in parts:
            raise ValueError(f"{value_type.__name__}.{field} is in no column")
        values.append(f"new(Key_{field}, ({', '.join(map(str, parts))},))")
    source = f"def read(row):\n    {', '.join(columns)}, = row\n    return new(Type, ({', '.join(values)},))\n"
    return _define(source, "read", functions)


def _compile_writer(value_type: type[Any], columns: Mapping[str, Stored]) -> Callable[[Any], tuple[Any, ...]]:
    """Return `def write(value): reservation_id, cart, … = value; return (cart.slice, write_state(state), …)`."""
    functions: dict[str, Any] = {}
    values = []
    for name, (field, _, convert) in columns.items():
        if convert:
            functions[f"write_{name}"] = convert
        # A property of the value is no field of the tuple.
        source = field if field.partition(".")[0] in value_type._fields else f"value.{field}"
        values.append(f"write_{name}({source})" if convert else source)
    fields = ", ".join(value_type._fields)
    return _define(f"def write(value):\n    {fields}, = value\n    return ({', '.join(values)},)\n", "write", functions)


def _define(source: str, name: str, functions: dict[str, Any]) -> Callable[..., Any]:
    exec(source, functions)  # noqa: S102 - the source is made of the names of our own columns
    defined: Callable[..., Any] = functions[name]
    return defined


def _same(*names: str) -> dict[str, Stored]:
    """Columns that have the name of their field and store it as it is."""
    return {name: Stored(name) for name in names}


def _key(field: str, *names: str) -> dict[str, Stored]:
    """Columns that store the parts of the key in `field`."""
    return {name: Stored(f"{field}.{name}") for name in names}


_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode


def _pack(entries: Mapping[str, str]) -> str:
    return _encode(dict(entries)) if entries else "{}"


def _unpack(text: str) -> Mapping[str, str]:
    entries: dict[str, str] = {} if text == "{}" else json.loads(text)
    return entries


# To look a number up takes a tenth of the time that calling the Enum takes.
_to_cart_state = {int(state): state for state in CartState}.__getitem__
_to_checkout_state = {int(state): state for state in CheckoutState}.__getitem__
_to_disposition = {int(disposition): disposition for disposition in Disposition}.__getitem__
_to_observed = {int(state): state for state in Observed}.__getitem__

CARTS = RowMapping(
    schema.carts,
    Cart,
    {
        **_key("key", "slice", "user_id", "cart_id"),
        **_same("uid", "currency_code", "ttl_us"),
        "state": Stored("state", _to_cart_state, int),
        "labels": Stored("labels", _unpack, _pack),
        "owns_currency": Stored("owns_currency", bool),
        # A property of Cart, stored to be searched for.
        **_same("expire_time"),
        **_same("item_count", "priced_count", "total_quantity", "subtotal", "byte_size"),
        **_same("revision", "etag_revision", "create_time", "update_time", "checkout_id", "merged_into"),
    },
)
ITEMS = RowMapping(
    schema.items,
    Item,
    {
        **_key("cart", "slice", "user_id", "cart_id"),
        **_same("item_id", "uid", "sku", "quantity", "unit_price"),
        "options": Stored("options", _unpack, _pack),
        "labels": Stored("labels", _unpack, _pack),
        **_same("reservation_id", "create_time", "update_time"),
    },
)
RESERVATIONS = RowMapping(
    schema.reservations,
    Reservation,
    {
        **_key("cart", "slice", "user_id", "cart_id"),
        # Intent.
        **_same("reservation_id", "item_id", "sku", "quantity", "ttl_us", "create_time"),
        "disposition": Stored("disposition", _to_disposition, int),
        **_same("revision", "intent_revision", "reserved_cap"),
        # Observed.
        "state": Stored("state", _to_observed, int),
        **_same("granted_quantity", "expire_time", "observed_revision", "reason", "seal_reason"),
        # Work.
        "waiting": Stored("waiting", bool),
        **_same("due_time", "attempt_count", "lease_epoch", "lease_expire_time", "last_error"),
        **_same("finish_time", "uncertain_until", "set_aside_reason"),
        # Checkouts and merges.
        **_same("checkout_id", "superseded_by"),
        "supersedes": Stored("supersedes", bool),
        **_same("trace_context"),
    },
)
CHECKOUTS = RowMapping(
    schema.checkouts,
    Checkout,
    {
        **_key("key", "slice", "user_id", "checkout_id"),
        "state": Stored("state", _to_checkout_state, int),
        "is_ready": Stored("is_ready", bool),
        **_same("cart_id", "cart_uid", "currency_code", "subtotal", "item_count", "total_quantity"),
        **_same("order_reference", "reason", "byte_size", "hold_ttl_us", "etag_revision"),
        **_same("create_time", "update_time", "expire_time"),
    },
)
CHECKOUT_ITEMS = RowMapping(
    schema.checkout_items,
    CheckoutItemRow,
    {
        **_key("checkout", "slice", "user_id", "checkout_id"),
        **_same("item_id", "cart_id", "uid", "sku", "quantity", "unit_price"),
        "options": Stored("options", _unpack, _pack),
        "labels": Stored("labels", _unpack, _pack),
        **_same("reservation_id", "create_time", "update_time"),
    },
)
REPLIES = RowMapping(
    schema.replies,
    StoredReply,
    {
        **_key("user", "slice", "user_id"),
        **_same("request_id", "create_time"),
        # The load statement answers in JSON, so bytes arrive in hexadecimal.
        "fingerprint": Stored("fingerprint", bytes.fromhex),
        "reply": Stored("reply", bytes.fromhex),
    },
)
COMMIT_MARKERS = RowMapping(
    schema.commit_markers,
    CommitMarkerRow,
    {**_key("marker", "writer_id", "batch_number"), **_same("slice", "update_time")},
)
USERS = RowMapping(
    schema.users,
    UserRow,
    {
        **_key("user", "slice", "user_id"),
        **_same("stored_bytes", "cart_count", "item_count", "unit_count", "erase_time"),
    },
)
PAUSES = RowMapping(schema.pauses, PauseRow, _same("slice", "name", "reason", "create_time"))
CLOCK = RowMapping(schema.clock, ClockRow, _same("slice", "set_back_time", "set_back_us", "next_slice"))
MAPPINGS: Sequence[RowMapping[Any]] = (
    CARTS,
    ITEMS,
    RESERVATIONS,
    CHECKOUTS,
    CHECKOUT_ITEMS,
    REPLIES,
    COMMIT_MARKERS,
    USERS,
    PAUSES,
    CLOCK,
)

to_cart, to_item, to_reservation = CARTS.to_value, ITEMS.to_value, RESERVATIONS.to_value
cart_row, item_row, reservation_row = CARTS.to_row, ITEMS.to_row, RESERVATIONS.to_row


def to_checkout_item(row: Row) -> tuple[CheckoutKey, Item]:
    """Return a checkout's key, and its item. The item keeps the key of the cart from which it passed."""
    sold = CHECKOUT_ITEMS.to_value(row)
    cart = CartKey(sold.checkout.slice, sold.checkout.user_id, sold.cart_id)
    values: dict[str, Any] = {name: getattr(sold, name) for name in Item._fields if name != "cart"}
    return sold.checkout, Item(cart=cart, **values)


def checkout_item_row(checkout: CheckoutKey, item: Item) -> Row:
    """Return the row of an item that has passed to a checkout."""
    values: dict[str, Any] = {name: getattr(item, name) for name in Item._fields if name != "cart"}
    return CHECKOUT_ITEMS.to_row(CheckoutItemRow(checkout=checkout, cart_id=item.cart.cart_id, **values))
