"""All that differs between SQLite and PostgreSQL in what is said to them; `engine` has what differs in connecting.

A statement that takes many rows takes them so that its text, and the work of preparing it, are the same for one row
and for five hundred: a JSON array or `executemany` on SQLite, one array a column on PostgreSQL.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    FromClause,
    Table,
    Text,
    TextClause,
    and_,
    bindparam,
    cast,
    column,
    extract,
    func,
    literal_column,
    select,
    tuple_,
)
from sqlalchemy.dialects import postgresql, sqlite

from cart_grpc.store.rows import Values

Key = tuple[Any, ...]
Insert = sqlite.Insert | postgresql.Insert
Condition = TextClause | None


class Dialect(Protocol):
    """How one database is spoken to."""

    def identity(self, table: FromClause) -> Sequence[ColumnElement[Any]]:
        """The columns that tell a row of `table` from the others, as the database finds it fastest."""
        ...

    def matches(self, table: Table, columns: Sequence[str], among: Condition = None) -> ColumnElement[bool]:
        """Whether `columns` of a row of `table` equal one of the keys given to `bind_keys`, and it is `among`."""
        ...

    def numbered_keys(self, table: Table, columns: Sequence[str]) -> FromClause:
        """The keys given to `bind_keys`: `columns`, each as in `table`, and their `number` in the order given."""
        ...

    def bind_keys(self, columns: Sequence[str], keys: Sequence[Key]) -> Mapping[str, Any]:
        """The parameters of a statement that contains `keys`."""
        ...

    def json_array(self, *columns: ColumnElement[Any]) -> ColumnElement[str]:
        """The text of a JSON array of `columns`."""
        ...

    def joined(self, texts: ColumnElement[str], separator: str) -> ColumnElement[str]:
        """All of `texts` as one, in the order of the subquery that they are from; NULL where there are none."""
        ...

    def insert(self, table: Table) -> Insert:
        """An INSERT of the rows given to `bind_rows`, every column of `table` in each."""
        ...

    def bind_rows(self, table: Table, rows: Sequence[Values]) -> Mapping[str, Any] | Sequence[Values]:
        """The parameters of an `insert`."""
        ...

    def is_writable(self, connection: Connection) -> bool:
        """Whether the database takes writes: a PostgreSQL in recovery, or told not to, answers and takes none."""
        ...

    def now(self) -> ColumnElement[int]:
        """The database's time, in microseconds since the Unix epoch."""
        ...


class SqliteDialect:
    """SQLite runs in this process, so this process's `clock` is the database's."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock

    def identity(self, table: FromClause) -> Sequence[ColumnElement[Any]]:
        return [column("rowid", _selectable=table)]

    def matches(self, table: Table, columns: Sequence[str], among: Condition = None) -> ColumnElement[bool]:
        # `(a, b) IN (SELECT ...)` makes SQLite search an index by its first column only: so, a join, and the rowids.
        each = func.json_each(bindparam("keys", type_=Text)).table_valued("value", name="k")
        wanted = table.alias("wanted")
        equal = (
            wanted.c[name] == func.json_extract(each.c.value, literal_column(f"'$[{index}]'"))
            for index, name in enumerate(columns)
        )
        rowids = select(*self.identity(wanted)).select_from(each).join(wanted, and_(*equal))
        return tuple_(*self.identity(table)).in_(rowids if among is None else rowids.where(among))

    def numbered_keys(self, table: Table, columns: Sequence[str]) -> FromClause:
        each = func.json_each(bindparam("keys", type_=Text)).table_valued("key", "value", name="k")
        parts = (
            func.json_extract(each.c.value, literal_column(f"'$[{index}]'"), type_=table.c[name].type).label(name)
            for index, name in enumerate(columns)
        )
        return select(each.c.key.label("number"), *parts).subquery("wanted")

    def bind_keys(self, columns: Sequence[str], keys: Sequence[Key]) -> Mapping[str, Any]:
        return {"keys": json.dumps(keys)}

    def json_array(self, *columns: ColumnElement[Any]) -> ColumnElement[str]:
        return func.json_array(*columns, type_=Text)

    def joined(self, texts: ColumnElement[str], separator: str) -> ColumnElement[str]:
        return func.group_concat(texts, literal_column(f"'{separator}'"), type_=Text)

    def insert(self, table: Table) -> Insert:
        return sqlite.insert(table)

    def bind_rows(self, table: Table, rows: Sequence[Values]) -> Mapping[str, Any] | Sequence[Values]:
        return rows

    def is_writable(self, connection: Connection) -> bool:
        return bool(connection.exec_driver_sql("SELECT 1").scalar_one())

    def now(self) -> ColumnElement[int]:
        return bindparam("clock", callable_=self._clock, type_=BigInteger)


class PostgresqlDialect:
    """PostgreSQL's clock is asked each time: its `now()` is the transaction's start, before its locks."""

    def identity(self, table: FromClause) -> Sequence[ColumnElement[Any]]:
        return list(table.primary_key)

    def matches(self, table: Table, columns: Sequence[str], among: Condition = None) -> ColumnElement[bool]:
        found = tuple_(*(table.c[name] for name in columns)).in_(select(_unnest(table, columns)))
        return found if among is None else and_(found, among)

    def numbered_keys(self, table: Table, columns: Sequence[str]) -> FromClause:
        arrays = (bindparam(_array(name), type_=postgresql.ARRAY(table.c[name].type)) for name in columns)
        keys = func.unnest(*arrays).table_valued(*columns, with_ordinality="number", name="wanted")
        return keys.render_derived()

    def json_array(self, *columns: ColumnElement[Any]) -> ColumnElement[str]:
        return cast(func.json_build_array(*columns), Text)

    def joined(self, texts: ColumnElement[str], separator: str) -> ColumnElement[str]:
        return func.string_agg(texts, literal_column(f"'{separator}'"), type_=Text)

    def bind_keys(self, columns: Sequence[str], keys: Sequence[Key]) -> Mapping[str, Any]:
        return {_array(column): [key[index] for key in keys] for index, column in enumerate(columns)}

    def insert(self, table: Table) -> Insert:
        columns = [column.name for column in table.columns]
        return postgresql.insert(table).from_select(columns, select(_unnest(table, columns)))

    def bind_rows(self, table: Table, rows: Sequence[Values]) -> Mapping[str, Any] | Sequence[Values]:
        return {_array(column.name): [row[column.name] for row in rows] for column in table.columns}

    def is_writable(self, connection: Connection) -> bool:
        return bool(connection.exec_driver_sql("SHOW transaction_read_only").scalar_one() == "off")

    def now(self) -> ColumnElement[int]:
        # As a subquery it is asked once a statement; a volatile function cannot be searched for in an index.
        asked = cast(func.floor(extract("epoch", func.clock_timestamp()) * 1_000_000), BigInteger)
        return select(asked).scalar_subquery()


def _unnest(table: Table, columns: Sequence[str]) -> Any:
    arrays = (bindparam(_array(name), type_=postgresql.ARRAY(table.c[name].type)) for name in columns)
    return func.unnest(*arrays).table_valued(*columns, name="k").render_derived()


def _array(column_name: str) -> str:
    """A parameter may not have a column's own name where that column could be set."""
    return f"{column_name}_array"
