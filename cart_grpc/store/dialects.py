"""The differences between SQLite and PostgreSQL in SQL. `sqlite` and `postgresql` connect and run transactions.

A statement over many rows has the same text for one row and for five hundred, so the database prepares it once: its
parameter is one JSON array on SQLite, one array for each column on PostgreSQL.
"""

import functools
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final, Literal, Protocol

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Executable,
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
    false,
    func,
    literal_column,
    select,
    text,
    true,
    tuple_,
    values,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.types import TypeEngine

from cart_grpc.store import schema
from cart_grpc.store.prepared import ManyArrays, ManyRows, PerTable, Prepared, Rows, SingleStatement

Key = Sequence[Any]
Values = dict[str, Any]
RowStatement = ManyRows | ManyArrays
RowWriter = PerTable | SingleStatement
KEYS: Final = "keys"
# About 5 ms of each purge.
PAGES_PER_PURGE: Final = 64
Insert = sqlite.Insert | postgresql.Insert
Condition = TextClause | None
# A FROM clause to join, and the ON condition.
Join = tuple[FromClause, ColumnElement[bool]]
Types = Mapping[str, TypeEngine[Any]]
# For dialects and the statements of each: to build them takes longer than to open a database. All stores share them.
built_once: Final = functools.lru_cache(maxsize=4)
Lock = Literal["wait", "skip"] | None


class Dialect(Protocol):
    """The parts of statements that each database writes differently. `ctes_can_write`: a CTE may be an UPDATE."""

    ctes_can_write: bool

    def __hash__(self) -> int: ...

    def row_id(self, table: FromClause) -> Sequence[ColumnElement[Any]]:
        """The columns that identify a row of `table`: those by which the database finds it fastest."""
        ...

    def in_keys(self, table: Table, columns: Sequence[str]) -> ColumnElement[bool]:
        """A condition: `columns` equal one of the keys that `bind_keys` binds."""
        ...

    def numbered_keys(self, columns: Types) -> FromClause:
        """The keys that `bind_keys` binds, as rows of `columns`, with their position in the column `number`."""
        ...

    def bind_keys(self, columns: Sequence[str], keys: Collection[Key], name: str = KEYS) -> Mapping[str, Any]:
        """The parameters of a statement that uses keys under `name`."""
        ...

    def select_by_keys(
        self, table: Table, columns: Sequence[str], name: str, where: Condition = None, only: Sequence[str] = ()
    ) -> Select[Any]:
        """The rows of `table` whose `columns` equal one of the keys bound under `name`, and that fulfil `where`.

        With `only` these columns, if there are some.
        """
        ...

    def join_by_index(self, table: Table, columns: Sequence[str], keys: FromClause, *, lock: Lock = None) -> Join:
        """The rows of `table` with the same `columns` as `keys`, to be joined to `keys`.

        `lock` locks them, and waits for those that another transaction has locked, or skips them.
        """
        ...

    def fenced(self, rows: Select[Any]) -> Select[Any]:
        """`rows`, a correlated subquery, as an optimization fence: the planner runs it by index for each outer row."""
        ...

    def json_rows(self, rows: Select[Any]) -> ScalarSelect[str]:
        """All of `rows` as one JSON text, an array of arrays of their columns. Bytes are in hexadecimal."""
        ...

    def json_array(self, *columns: ColumnElement[Any]) -> ColumnElement[str]:
        """A JSON array of `columns`, as text."""
        ...

    def string_agg(self, texts: ColumnElement[str], separator: str) -> ColumnElement[str]:
        """All of `texts` as one, in the order of their subquery. NULL if there are none."""
        ...

    def given_rows(self, columns: Types) -> FromClause:
        """The rows that a statement of `prepare_rows` gets, to be joined."""
        ...

    def find_rows(self, table: Table, columns: Sequence[str], keys: FromClause) -> Join:
        """The rows of `table` with the same `columns` as `keys`, for an UPDATE: `keys`, and the condition of the join.

        The planner finds them by index.
        """
        ...

    def prepare_rows(self, statement: Executable, columns: Sequence[str]) -> RowStatement:
        """Prepare a statement over `given_rows` of `columns`."""
        ...

    def insert(self, table: Table) -> Insert:
        """An INSERT of the rows that `bind_rows` binds, with every column of `table`."""
        ...

    def bind_rows(self, table: Table, rows: Rows) -> Mapping[str, Any] | Sequence[Values]:
        """The parameters of an `insert`. The values of a row are in the order of the table's columns."""
        ...

    def on_node(self, insert: Insert) -> Insert:
        """`insert`, for a table of a distributed PostgreSQL: it runs on the node of the table."""
        ...

    def row_writer(self, upserts: Mapping[str, Insert]) -> RowWriter:
        """Writes rows of many tables, with one upsert for each table."""
        ...

    def force_custom_plan(self, connection: Connection) -> None:
        """From here to the end of the transaction, plan each statement for the tables as they are now.

        By default plans are kept. That is right only for `select_by_keys`, `join_by_index` and `row_writer`, which use
        an index in any case.
        """
        ...

    def is_writable(self, connection: Connection) -> bool:
        """Whether the database accepts writes. A PostgreSQL standby, or one that is set read-only, does not."""
        ...

    def give_back_space(self, connection: Connection) -> None:
        """Return a little of the space of deleted rows to the file system, if much of it is free."""
        ...

    def now(self) -> ColumnElement[int]:
        """The database's time in microseconds since the Unix epoch, as SQL."""
        ...

    def read_now(self, connection: Connection) -> int:
        """Read the database's time in microseconds since the Unix epoch.

        If the statements of `connection` name a shard, it is the time of the shard's node.
        """
        ...


class SqliteDialect:
    """SQLite runs in this process, so the database's time is this process's `clock`, in microseconds."""

    ctes_can_write = False

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock

    def row_id(self, table: FromClause) -> Sequence[ColumnElement[Any]]:
        return [column("rowid", _selectable=table)]

    def in_keys(self, table: Table, columns: Sequence[str]) -> ColumnElement[bool]:
        # For `(a, b) IN (SELECT ...)` SQLite searches an index by its first column only. A join uses all columns.
        wanted = table.alias("wanted")
        rowids = self._join(select(*self.row_id(wanted)), wanted, columns, KEYS)
        return tuple_(*self.row_id(table)).in_(rowids)

    def numbered_keys(self, columns: Types) -> FromClause:
        each = func.json_each(bindparam(KEYS, type_=Text)).table_valued("key", "value", name="k")
        parts = (
            func.json_extract(each.c.value, literal_column(f"'$[{index}]'"), type_=type_).label(name)
            for index, (name, type_) in enumerate(columns.items())
        )
        return select(each.c.key.label("number"), *parts).subquery("wanted")

    def select_by_keys(
        self, table: Table, columns: Sequence[str], name: str, where: Condition = None, only: Sequence[str] = ()
    ) -> Select[Any]:
        rows = self._join(_select(table, only), table, columns, name)
        return rows if where is None else rows.where(where)

    def join_by_index(self, table: Table, columns: Sequence[str], keys: FromClause, *, lock: Lock = None) -> Join:
        return table, _equal(table, columns, keys)

    def fenced(self, rows: Select[Any]) -> Select[Any]:
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

    def json_rows(self, rows: Select[Any]) -> ScalarSelect[str]:
        each = (func.hex(one) if isinstance(one.type, LargeBinary) else one for one in rows.selected_columns)
        return rows.with_only_columns(func.json_group_array(func.json_array(*each))).scalar_subquery()

    def json_array(self, *columns: ColumnElement[Any]) -> ColumnElement[str]:
        return func.json_array(*columns, type_=Text)

    def string_agg(self, texts: ColumnElement[str], separator: str) -> ColumnElement[str]:
        return func.group_concat(texts, literal_column(f"'{separator}'"), type_=Text)

    def given_rows(self, columns: Types) -> FromClause:
        binds = tuple(bindparam(f"given_{name}", type_=type_) for name, type_ in columns.items())
        return values(*(column(name, type_) for name, type_ in columns.items())).data([binds]).cte("given")

    def find_rows(self, table: Table, columns: Sequence[str], keys: FromClause) -> Join:
        return keys, _equal(table, columns, keys)

    def prepare_rows(self, statement: Executable, columns: Sequence[str]) -> RowStatement:
        return ManyRows(statement)

    def insert(self, table: Table) -> Insert:
        return sqlite.insert(table)

    def bind_rows(self, table: Table, rows: Rows) -> Mapping[str, Any] | Sequence[Values]:
        names = table.columns.keys()
        return [dict(zip(names, row, strict=True)) for row in rows]

    def on_node(self, insert: Insert) -> Insert:
        return insert

    def row_writer(self, upserts: Mapping[str, Insert]) -> RowWriter:
        return PerTable(upserts)

    def force_custom_plan(self, connection: Connection) -> None:
        """Nothing to do: without ANALYZE, SQLite plans from a statement's text alone."""

    def is_writable(self, connection: Connection) -> bool:
        return bool(connection.exec_driver_sql("SELECT 1").scalar_one())

    def give_back_space(self, connection: Connection) -> None:
        pages, free = (
            int(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()) for name in ("page_count", "freelist_count")
        )
        # New rows use free pages first, so a quarter of the file stays.
        for _ in range(min(free - pages // 4, PAGES_PER_PURGE)):
            # One page: Python's driver ends the statement after the first page in any case.
            connection.exec_driver_sql("PRAGMA incremental_vacuum(1)").close()

    def now(self) -> ColumnElement[int]:
        return bindparam("clock", callable_=self._clock, type_=BigInteger)

    def read_now(self, connection: Connection) -> int:
        return self._clock()


class PostgresqlDialect:
    """Time is `clock_timestamp()`: PostgreSQL's `now()` is the start of the transaction, before it took its locks."""

    ctes_can_write = True

    def __init__(self) -> None:
        # Without a table, the coordinator would read its own clock. This one has at most one row.
        self._now = Prepared(select(self.now()), select(self.now(), func.count()).select_from(schema.clock))
        self._force_custom_plan = Prepared(text("SET LOCAL plan_cache_mode = force_custom_plan"))

    def row_id(self, table: FromClause) -> Sequence[ColumnElement[Any]]:
        return list(table.primary_key)

    def in_keys(self, table: Table, columns: Sequence[str]) -> ColumnElement[bool]:
        return tuple_(*(table.c[name] for name in columns)).in_(select(_unnest(table, columns, KEYS)))

    def select_by_keys(
        self, table: Table, columns: Sequence[str], name: str, where: Condition = None, only: Sequence[str] = ()
    ) -> Select[Any]:
        keys, rows = _unnest(table, columns, name), _select(table, only)
        found, on = self._join(rows if where is None else rows.where(where), table, columns, keys)
        return select(found).select_from(keys.join(found, on))

    def join_by_index(self, table: Table, columns: Sequence[str], keys: FromClause, *, lock: Lock = None) -> Join:
        rows = select(table)
        rows = rows.with_for_update(skip_locked=lock == "skip") if lock else rows
        return self._join(rows, table, columns, keys)

    def _join(self, rows: Select[Any], table: Table, columns: Sequence[str], keys: FromClause) -> Join:
        return self.fenced(rows.where(_equal(table, columns, keys))).lateral(f"found_{table.name}"), true()

    def fenced(self, rows: Select[Any]) -> Select[Any]:
        # OFFSET 0 keeps the planner from making it a join. A join that was planned for a small index reads all of it.
        return rows.offset(literal_column("0"))

    def bind_keys(self, columns: Sequence[str], keys: Collection[Key], name: str = KEYS) -> Mapping[str, Any]:
        arrays = zip(*keys, strict=True) if keys else [()] * len(columns)
        return {_array(name, column): array for column, array in zip(columns, arrays, strict=True)}

    def json_rows(self, rows: Select[Any]) -> ScalarSelect[str]:
        each = (func.encode(one, "hex") if isinstance(one.type, LargeBinary) else one for one in rows.selected_columns)
        found = func.coalesce(func.json_agg(func.json_build_array(*each)), literal_column("'[]'"))
        return rows.with_only_columns(cast(found, Text)).scalar_subquery()

    def numbered_keys(self, columns: Types) -> FromClause:
        arrays = (bindparam(_array(KEYS, name), type_=postgresql.ARRAY(type_)) for name, type_ in columns.items())
        keys = func.unnest(*arrays).table_valued(*columns, with_ordinality="number", name="wanted")
        return keys.render_derived()

    def json_array(self, *columns: ColumnElement[Any]) -> ColumnElement[str]:
        return cast(func.json_build_array(*columns), Text)

    def string_agg(self, texts: ColumnElement[str], separator: str) -> ColumnElement[str]:
        return func.string_agg(texts, literal_column(f"'{separator}'"), type_=Text)

    def given_rows(self, columns: Types) -> FromClause:
        arrays = (bindparam(_array("given", name), type_=postgresql.ARRAY(type_)) for name, type_ in columns.items())
        return func.unnest(*arrays).table_valued(*columns, name="given").render_derived()

    def find_rows(self, table: Table, columns: Sequence[str], keys: FromClause) -> Join:
        # By its place: a row has no other key for which the planner could read a whole index.
        place: ColumnElement[Any] = literal_column(f"{table.name}.ctid")
        row, on = self._join(select(place.label("place")), table, columns, keys)
        found = select(keys, row.c.place).select_from(keys.join(row, on)).subquery("found")
        return found, place == found.c.place

    def prepare_rows(self, statement: Executable, columns: Sequence[str]) -> RowStatement:
        return ManyArrays(statement, [_array("given", name) for name in columns])

    def insert(self, table: Table) -> Insert:
        columns = table.columns.keys()
        return postgresql.insert(table).from_select(columns, select(_unnest(table, columns, table.name)))

    def bind_rows(self, table: Table, rows: Rows) -> Mapping[str, Any] | Sequence[Values]:
        return self.bind_keys(table.columns.keys(), rows, table.name)

    def on_node(self, insert: Insert) -> Insert:
        columns = insert.table.columns.keys()
        keys = _unnest(insert.table, columns, insert.table.name)
        # Without a table in its SELECT, Citus would run that on the coordinator and copy the rows to the node.
        return insert.from_select(columns, select(keys).select_from(keys.outerjoin(schema.clock, false())))

    def row_writer(self, upserts: Mapping[str, Insert]) -> RowWriter:
        written = [upsert.returning(literal_column("1")).cte(f"written_{name}") for name, upsert in upserts.items()]
        everything = select(*(select(func.count()).select_from(one).scalar_subquery() for one in written))
        columns = {
            name: [_array(name, column.name) for column in upsert.table.columns] for name, upsert in upserts.items()
        }
        on_node: dict[str, Executable] = {
            name: self.on_node(upsert).returning(literal_column("1")) for name, upsert in upserts.items()
        }
        return SingleStatement(everything, on_node, columns)

    def force_custom_plan(self, connection: Connection) -> None:
        self._force_custom_plan.fetch(connection, {})

    def is_writable(self, connection: Connection) -> bool:
        return bool(connection.exec_driver_sql("SHOW transaction_read_only").scalar_one() == "off")

    def give_back_space(self, connection: Connection) -> None:
        # Autovacuum does that.
        pass

    def now(self) -> ColumnElement[int]:
        # A subquery runs once for each statement. A volatile function by itself cannot be used to search an index.
        clock = cast(func.floor(extract("epoch", func.clock_timestamp()) * 1_000_000), BigInteger)
        return select(clock).scalar_subquery()

    def read_now(self, connection: Connection) -> int:
        ((now, *_),) = self._now.fetch(connection, {})
        return int(now)


def _select(table: Table, only: Sequence[str]) -> Select[Any]:
    return select(*(table.c[name] for name in only or table.columns.keys()))


def _equal(table: FromClause, columns: Sequence[str], keys: FromClause) -> ColumnElement[bool]:
    return and_(*(table.c[each] == keys.c[each] for each in columns))


def _unnest(table: FromClause, columns: Sequence[str], name: str) -> Any:
    arrays = (bindparam(_array(name, column), type_=postgresql.ARRAY(table.c[column].type)) for column in columns)
    return func.unnest(*arrays).table_valued(*columns, name="k").render_derived()


def _array(name: str, column: str) -> str:
    """The name of the parameter for a column. It differs from the column's: SQLAlchemy reserves that for SET."""
    return f"{name}_{column}_array"
