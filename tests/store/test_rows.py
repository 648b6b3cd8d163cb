"""Rows are mapped by column name: each column of each table has exactly one mapping, and values survive both ways."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, insert, select

from cart_grpc.carts.model import Cart, CartState, Item
from cart_grpc.names import CartKey, UserKey
from cart_grpc.protocol.reservation import Disposition, Observed, Reservation
from cart_grpc.store import schema
from cart_grpc.store.engine import Engine
from cart_grpc.store.rows import (
    CARTS,
    COMMIT_MARKERS,
    ITEMS,
    MAPPINGS,
    PAUSES,
    REPLIES,
    RESERVATIONS,
    USERS,
    CommitMarker,
    CommitMarkerRow,
    PauseRow,
    RowMapping,
    Stored,
    StoredReply,
    UserRow,
)

KEY = CartKey(7, "alice", "default")
# No two fields have the same value, so a swap of two columns is seen.
CART = Cart(
    KEY, "uid", CartState.DELETED, {"b": "1", "a": "ü"}, "EUR", True, 60, 2, 1, 5, 700, 900, 12, 11, 1_000, 2_000
)
ITEM = Item(KEY, "item", "uid", "sku", {"size": "L"}, 3, 250, {"gift": "yes"}, "reservation", 1_001, 1_002)
RESERVATION = Reservation(
    "reservation", KEY, "item", "sku", 5, Disposition.COMMIT, 60, 9, 8, 4, 1_003, Observed.REJECTED, 3, 2_003, 7,
    "OUT_OF_STOCK", "SEALED", True, 1_004, 6, 10, 1_005, "UNAVAILABLE: gone", 1_006, 1_007,
)  # fmt: skip
REPLY = StoredReply(UserKey(7, "alice"), "request", b"\x01\xff", b"\x00reply", 1_008)
EXAMPLES: list[tuple[RowMapping[Any], Any]] = [
    (CARTS, CART),
    (ITEMS, ITEM),
    (RESERVATIONS, RESERVATION),
    (REPLIES, REPLY),
    (COMMIT_MARKERS, CommitMarkerRow(1, CommitMarker("writer", 2), 3)),
    (USERS, UserRow(UserKey(7, "alice"), 2)),
    (PAUSES, PauseRow(1, "reservations", "maintenance", 2)),
]


def test_every_table_has_one_mapping_with_one_entry_for_each_column_in_the_order_of_the_table() -> None:
    assert {mapping.table.name for mapping in MAPPINGS} == schema.metadata.tables.keys()
    assert len(MAPPINGS) == len(schema.metadata.tables)
    for mapping in MAPPINGS:
        assert list(mapping.columns) == mapping.table.columns.keys()
        fields = [stored.field for stored in mapping.columns.values()]
        assert len(fields) == len(set(fields)), mapping.table.name


def test_a_column_without_a_mapping_is_an_error() -> None:
    columns = {name: stored for name, stored in PAUSES.columns.items() if name != "reason"}
    with pytest.raises(ValueError, match="pauses"):
        RowMapping(schema.pauses, PauseRow, columns)


def test_a_field_that_is_in_no_column_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"PauseRow\.reason"):
        RowMapping(schema.pauses, PauseRow, {**PAUSES.columns, "reason": Stored("other")})
    with pytest.raises(ValueError, match=r"UserRow\.user"):
        RowMapping(schema.users, UserRow, {**USERS.columns, "user_id": Stored("user.other")})


@pytest.mark.parametrize(("mapping", "value"), EXAMPLES, ids=[mapping.table.name for mapping, _ in EXAMPLES])
def test_each_column_stores_the_field_of_its_mapping(mapping: RowMapping[Any], value: Any) -> None:
    row = dict(zip(mapping.table.columns.keys(), mapping.to_row(value), strict=True))
    for name, (field, _, write) in mapping.columns.items():
        stored = value
        for part in field.split("."):
            stored = getattr(stored, part)
        assert row[name] == (write(stored) if write else stored), name
        # The column and the field have the same name: a mapping to another field of the same type would be a swap.
        assert field.rpartition(".")[2] == name


@pytest.mark.parametrize(("mapping", "value"), EXAMPLES, ids=[mapping.table.name for mapping, _ in EXAMPLES])
async def test_a_value_that_the_database_stored_is_read_back_unchanged(
    engine: Engine, mapping: RowMapping[Any], value: Any
) -> None:
    row = dict(zip(mapping.table.columns.keys(), mapping.to_row(value), strict=True))

    def write_and_read(connection: Connection) -> Any:
        connection.execute(insert(mapping.table).values(row))
        return connection.execute(select(mapping.table)).one()

    found = await engine.transact(write_and_read)
    if mapping is REPLIES:
        # Replies are read as JSON, in which bytes are hexadecimal.
        found = [column.hex() if isinstance(column, bytes) else column for column in found]
    read = mapping.to_value(found)
    assert read == value
    assert [type(field) for field in read] == [type(field) for field in value]


@given(st.dictionaries(st.text(), st.text(), max_size=3), st.none() | st.integers(0, 2**40))
def test_labels_and_missing_values_survive_both_ways_through_json(labels: dict[str, str], ttl_us: int | None) -> None:
    cart = CART._replace(labels=labels, ttl_us=ttl_us)
    assert CARTS.to_value(json.loads(json.dumps(CARTS.to_row(cart)))) == cart
