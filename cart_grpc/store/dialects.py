"""All that differs between SQLite and PostgreSQL in what is said to them; `engine` has what differs in connecting.

A statement that takes many rows takes them so that its text, and the work of preparing it, are the same for one row
and for five hundred: a JSON array or `executemany` on SQLite, one array a column on PostgreSQL.
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final, Protocol

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    FromClause,
    LargeBinary,
    ScalarSelect,
    Select,
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
    text,
    true,
    tuple_,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.types import TypeEngine

from cart_grpc.store.prepared import OneByOne, Prepared, Rows, Together

Key = Sequence[Any]
Values = dict[str, Any]
Writer = OneByOne | Together
KEYS: Final = "keys"
Insert = sqlite.Insert | postgresql.Insert
Condition = TextClause | None
Lookup = tuple[FromClause, ColumnElement[bool]]
Types = Mapping[str, TypeEngine[Any]]


class Dialect(Protocol):
    """How one database is spoken to."""

    def identity(self, table: FromClause) -> Sequence[ColumnElement[Any]]:
        """The columns that tell a row of `table` from the others, as the database finds it fastest."""
        ...

    def matches(self, table: Table, columns: Sequence[str], among: Condition = None) -> ColumnElement[bool]:
        """Whether `columns` of a row of `table` equal one of the keys given to `bind_keys`, and it is `among`."""
        ...

    def numbered_keys(self, columns: Types) -> FromClause:
        """The keys given to `bind_keys`: `columns`, each of its type, and their `number` in the order given."""
        ...

    def bind_keys(self, columns: Sequence[str], keys: Collection[Key], name: str = KEYS) -> Mapping[str, Any]:
        """The parameters of a statement that contains keys under `name`."""
        ...

    def keyed(self, table: Table, columns: Sequence[str], name: str, among: Condition = None) -> Select[Any]:
        """The rows of `table`, those that are `among`, whose `columns` equal one of the keys given to `bind_keys` under
        `name`.
        """
        ...

    def lookup(self, table: Table, columns: Sequence[str], keys: FromClause, *, lock: bool = False) -> Lookup:
        """What to join to `keys`, and on what, for the rows of `table` with the same `columns`; `lock` locks them."""
        ...

    def by_index(self, rows: Select[Any]) -> Select[Any]:
        """`rows`, a part of a statement, looked for anew for each row around it, and so by an index."""
        ...

    def json_rows(self, rows: FromClause, columns: Sequence[ColumnElement[Any]]) -> ScalarSelect[str]:
        """All of `rows` as one JSON text, an array of arrays of `columns`; bytes are in hexadecimal."""
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

    def bind_rows(self, table: Table, rows: Rows) -> Mapping[str, Any] | Sequence[Values]:
        """The parameters of an `insert`; the values of a row are in the order of the table's columns."""
        ...

    def together(self, upserts: Mapping[str, Insert]) -> Writer:
        """What writes the rows of many tables, with an upsert for each."""
        ...

    def plan_anew(self, connection: Connection) -> None:
        """Plan what is said in this transaction from here on for the tables as they are.

        Before, plans are kept, which suits what `keyed` and `lookup` find and what `together` writes, and nothing else.
        """
        ...

    def is_writable(self, connection: Connection) -> bool:
        """Whether the database takes writes: a PostgreSQL in recovery, or told not to, answers and takes none."""
        ...

    def now(self) -> ColumnElement[int]:
        """The database's time, in microseconds since the Unix epoch."""
        ...

    def read_now(self, connection: Connection) -> int:
        """The same, asked for."""
        ...


class SqliteDialect:
    """SQLite runs in this process, so this process's `clock` is the database's."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock

    def identity(self, table: FromClause) -> Sequence[ColumnElement[Any]]:
        return [column("rowid", _selectable=table)]

    def matches(self, table: Table, columns: Sequence[str], among: Condition = None) -> ColumnElement[bool]:
        # `(a, b) IN (SELECT ...)` makes SQLite search an index by its first column only: so, a join, and the rowids.
        wanted = table.alias("wanted")
        rowids = self._join(select(*self.identity(wanted)), wanted, columns, KEYS)
        return tuple_(*self.identity(table)).in_(rowids if among is None else rowids.where(among))

    def numbered_keys(self, columns: Types) -> FromClause:
        each = func.json_each(bindparam(KEYS, type_=Text)).table_valued("key", "value", name="k")
        parts = (
            func.json_extract(each.c.value, literal_column(f"'$[{index}]'"), type_=type_).label(name)
            for index, (name, type_) in enumerate(columns.items())
        )
        return select(each.c.key.label("number"), *parts).subquery("wanted")

    def keyed(self, table: Table, columns: Sequence[str], name: str, among: Condition = None) -> Select[Any]:
        rows = self._join(select(table), table, columns, name)
        return rows if among is None else rows.where(among)

    def lookup(self, table: Table, columns: Sequence[str], keys: FromClause, *, lock: bool = False) -> Lookup:
        return table, _same(table, columns, keys)

    def by_index(self, rows: Select[Any]) -> Select[Any]:
        return rows

    def _join(self, rows: Select[Any], table: FromClause, columns: Sequence[str], name: str) -> Select[Any]:
        each = func.json_each(bindparam(name, type_=Text)).table_valued("value", name="k")
        equal = (
            table.c[column] == func.json_extract(each.c.value, literal_column(f"'$[{index}]'"))
            for index, column in enumerate(columns)
        )
        return rows.select_from(each).join(table, and_(*equal))

    def bind_keys(self, columns: Sequence[str], keys: Collection[Key], name: str = KEYS) -> Mapping[str, Any]:
        return {name: json.dumps(list(keys))}

    def json_rows(self, rows: FromClause, columns: Sequence[ColumnElement[Any]]) -> ScalarSelect[str]:
        each = (func.hex(one) if isinstance(one.type, LargeBinary) else one for one in columns)
        return select(func.json_group_array(func.json_array(*each))).select_from(rows).scalar_subquery()

    def json_array(self, *columns: ColumnElement[Any]) -> ColumnElement[str]:
        return func.json_array(*columns, type_=Text)

    def joined(self, texts: ColumnElement[str], separator: str) -> ColumnElement[str]:
        return func.group_concat(texts, literal_column(f"'{separator}'"), type_=Text)

    def insert(self, table: Table) -> Insert:
        return sqlite.insert(table)

    def bind_rows(self, table: Table, rows: Rows) -> Mapping[str, Any] | Sequence[Values]:
        names = table.columns.keys()
        return [dict(zip(names, row, strict=True)) for row in rows]

    def together(self, upserts: Mapping[str, Insert]) -> Writer:
        return OneByOne(upserts)

    def plan_anew(self, connection: Connection) -> None:
        """Its plans are made of what is said alone."""

    def is_writable(self, connection: Connection) -> bool:
        return bool(connection.exec_driver_sql("SELECT 1").scalar_one())

    def now(self) -> ColumnElement[int]:
        return bindparam("clock", callable_=self._clock, type_=BigInteger)

    def read_now(self, connection: Connection) -> int:
        return self._clock()


class PostgresqlDialect:
    """PostgreSQL's clock is asked each time: its `now()` is the transaction's start, before its locks."""

    def __init__(self) -> None:
        self._now = Prepared(select(self.now()))
        self._plan_anew = Prepared(text("SET LOCAL plan_cache_mode = force_custom_plan"))

    def identity(self, table: FromClause) -> Sequence[ColumnElement[Any]]:
        return list(table.primary_key)

    def matches(self, table: Table, columns: Sequence[str], among: Condition = None) -> ColumnElement[bool]:
        found = tuple_(*(table.c[name] for name in columns)).in_(select(_unnest(table, columns, KEYS)))
        return found if among is None else and_(found, among)

    def keyed(self, table: Table, columns: Sequence[str], name: str, among: Condition = None) -> Select[Any]:
        keys = _unnest(table, columns, name)
        found, on = self._lookup(select(table) if among is None else select(table).where(among), table, columns, keys)
        return select(found).select_from(keys.join(found, on))

    def lookup(self, table: Table, columns: Sequence[str], keys: FromClause, *, lock: bool = False) -> Lookup:
        rows = select(table)
        return self._lookup(rows.with_for_update() if lock else rows, table, columns, keys)

    def _lookup(self, rows: Select[Any], table: Table, columns: Sequence[str], keys: FromClause) -> Lookup:
        return self.by_index(rows.where(_same(table, columns, keys))).lateral(f"found_{table.name}"), true()

    def by_index(self, rows: Select[Any]) -> Select[Any]:
        # OFFSET keeps it from becoming a join, which reads all of an index that was small when that was planned.
        return rows.offset(literal_column("0"))

    def bind_keys(self, columns: Sequence[str], keys: Collection[Key], name: str = KEYS) -> Mapping[str, Any]:
        arrays = zip(*keys, strict=True) if keys else [()] * len(columns)
        return {_array(name, column): array for column, array in zip(columns, arrays, strict=True)}

    def json_rows(self, rows: FromClause, columns: Sequence[ColumnElement[Any]]) -> ScalarSelect[str]:
        each = (func.encode(one, "hex") if isinstance(one.type, LargeBinary) else one for one in columns)
        found = func.coalesce(func.json_agg(func.json_build_array(*each)), literal_column("'[]'"))
        return select(cast(found, Text)).select_from(rows).scalar_subquery()

    def numbered_keys(self, columns: Types) -> FromClause:
        arrays = (bindparam(_array(KEYS, name), type_=postgresql.ARRAY(type_)) for name, type_ in columns.items())
        keys = func.unnest(*arrays).table_valued(*columns, with_ordinality="number", name="wanted")
        return keys.render_derived()

    def json_array(self, *columns: ColumnElement[Any]) -> ColumnElement[str]:
        return cast(func.json_build_array(*columns), Text)

    def joined(self, texts: ColumnElement[str], separator: str) -> ColumnElement[str]:
        return func.string_agg(texts, literal_column(f"'{separator}'"), type_=Text)

    def insert(self, table: Table) -> Insert:
        columns = table.columns.keys()
        return postgresql.insert(table).from_select(columns, select(_unnest(table, columns, table.name)))

    def bind_rows(self, table: Table, rows: Rows) -> Mapping[str, Any] | Sequence[Values]:
        return self.bind_keys(table.columns.keys(), rows, table.name)

    def together(self, upserts: Mapping[str, Insert]) -> Writer:
        written = [upsert.returning(literal_column("1")).cte(f"written_{name}") for name, upsert in upserts.items()]
        everything = select(*(select(func.count()).select_from(one).scalar_subquery() for one in written))
        columns = {
            name: [_array(name, column.name) for column in upsert.table.columns] for name, upsert in upserts.items()
        }
        return Together(everything, columns)

    def plan_anew(self, connection: Connection) -> None:
        self._plan_anew.fetch(connection, {})

    def is_writable(self, connection: Connection) -> bool:
        return bool(connection.exec_driver_sql("SHOW transaction_read_only").scalar_one() == "off")

    def now(self) -> ColumnElement[int]:
        # As a subquery it is asked once a statement; a volatile function cannot be searched for in an index.
        asked = cast(func.floor(extract("epoch", func.clock_timestamp()) * 1_000_000), BigInteger)
        return select(asked).scalar_subquery()

    def read_now(self, connection: Connection) -> int:
        ((now,),) = self._now.fetch(connection, {})
        return int(now)


def _same(table: FromClause, columns: Sequence[str], keys: FromClause) -> ColumnElement[bool]:
    return and_(*(table.c[each] == keys.c[each] for each in columns))


def _unnest(table: Table, columns: Sequence[str], name: str) -> Any:
    arrays = (bindparam(_array(name, column), type_=postgresql.ARRAY(table.c[column].type)) for column in columns)
    return func.unnest(*arrays).table_valued(*columns, name="k").render_derived()


def _array(name: str, column: str) -> str:
    """A parameter may not have a column's own name where that column could be set."""
    return f"{name}_{column}_array"
