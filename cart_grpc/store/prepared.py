"""Statements that run on the driver itself, past SQLAlchemy's execution. SQLAlchemy still writes their text, once.

Every write of a caller passes here. Through SQLAlchemy each statement costs about as much as the rest of a batch:
see docs/performance.md.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import asyncpg
from sqlalchemy import Connection, Executable
from sqlalchemy.util import await_only

from cart_grpc.store.shards import find_schema, is_distributed

_ANY_SCHEMA: Final = "cart_any_shard"
Rows = Sequence[Sequence[Any]]


class Prepared:
    """One statement for one dialect, compiled when it first runs. `on_node` replaces it on a distributed database."""

    def __init__(self, statement: Executable, on_node: Executable | None = None) -> None:
        self._statement = statement
        self._on_node = None if on_node is None else Prepared(on_node)
        # By the schema that the text names. That of _ANY_SCHEMA is the pattern of the others.
        self._texts: dict[str | None, str] = {}
        self._names: Sequence[str] = ()
        self._constants: Mapping[str, Any] = {}
        self._callables: Mapping[str, Callable[[], Any]] = {}

    def text(self, connection: Connection) -> str:
        """The SQL that the driver gets."""
        schema = find_schema(connection)
        text = self._texts.get(schema)
        if text is None:
            if schema is None:
                text = self._compile(connection, {})
            else:
                # To compile takes a hundred times as long as to replace the name.
                pattern = self._texts.get(_ANY_SCHEMA)
                pattern = pattern or self._compile(connection, {"schema_translate_map": {None: _ANY_SCHEMA}})
                self._texts[_ANY_SCHEMA] = pattern
                text = pattern.replace(f"{_ANY_SCHEMA}.", f"{schema}.")
            self._texts[schema] = text
        return text

    def _compile(self, connection: Connection, options: Mapping[str, Any]) -> str:
        options = {"render_schema_translate": True, **options} if options else {}
        compiled: Any = self._statement.compile(dialect=connection.dialect, **options)  # type: ignore[attr-defined]
        self._names = compiled.positiontup or ()
        # Without required parameters: if the caller forgets one, `fetch` raises KeyError instead of binding NULL.
        self._constants = {name: bind.value for name, bind in compiled.binds.items() if not bind.required}
        self._callables = {name: bind.callable for name, bind in compiled.binds.items() if bind.callable}
        return str(compiled)

    def fetch(self, connection: Connection, parameters: Mapping[str, Any]) -> Rows:
        """Run the statement in the open transaction of `connection` and return its rows. Raises the driver's errors."""
        if self._on_node and is_distributed(connection):
            return self._on_node.fetch(connection, parameters)
        text = self.text(connection)
        known = {**self._constants, **{name: call() for name, call in self._callables.items()}, **parameters}
        return fetch(connection, text, [known[name] for name in self._names])


def fetch(connection: Connection, text: str, values: Sequence[Any]) -> Rows:
    """Run `text` on the driver's own connection and return its rows. Raises the driver's errors."""
    driver: Any = connection.connection.driver_connection
    if isinstance(driver, asyncpg.Connection):
        found: Rows = await_only(driver.fetch(text, *values))
        return found
    rows: Rows = driver.execute(text, values).fetchall()
    return rows


class ManyRows:
    """A statement of SQLite with the values of many rows. It is prepared once for each number of rows.

    One statement of 32 rows releases the GIL once. `executemany` releases it 32 times, and waits for it each time.
    """

    LARGEST = 64

    def __init__(self, statement: Executable) -> None:
        self._one = Prepared(statement)
        # By the text for one row, which names the schema, and the number of rows.
        self._texts: dict[tuple[str, int], str] = {}

    def run(self, connection: Connection, rows: Rows) -> Iterator[Any]:
        """Run the statement with `rows`, and yield the driver's cursor for each LARGEST of them."""
        driver: Any = connection.connection.driver_connection
        for start in range(0, len(rows), self.LARGEST):
            part = rows[start : start + self.LARGEST]
            values = [value for row in part for value in row]
            yield driver.execute(self._text(connection, len(part)), values)

    def fetch(self, connection: Connection, rows: Rows) -> Rows:
        """Run the statement with `rows`, and return the rows that it returns."""
        return [found for cursor in self.run(connection, rows) for found in cursor.fetchall()]

    def _text(self, connection: Connection, size: int) -> str:
        one = self._one.text(connection)
        text = self._texts.get((one, size))
        if text is None:
            row = one[one.index("VALUES (") + len("VALUES ") : one.index(")", one.index("VALUES (")) + 1]
            text = self._texts[one, size] = one.replace(row, ", ".join([row] * size), 1)
        return text


class ManyArrays:
    """As `ManyRows`, for PostgreSQL: each column is one array."""

    def __init__(self, statement: Executable, columns: Sequence[str]) -> None:
        self._statement = Prepared(statement)
        self._columns = columns

    def fetch(self, connection: Connection, rows: Rows) -> Rows:
        """Run the statement with `rows`, and return the rows that it returns."""
        return self._statement.fetch(connection, dict(zip(self._columns, zip(*rows, strict=True), strict=True)))


class PerTable:
    """Upserts for SQLite: one statement for each table."""

    def __init__(self, upserts: Mapping[str, Executable]) -> None:
        self._upserts = {name: ManyRows(upsert) for name, upsert in upserts.items()}

    def write(self, connection: Connection, rows: Mapping[str, Rows]) -> Mapping[str, int]:
        """Write `rows`, by table, each in the order of the table's columns. Return how many were written, by table."""
        return {
            name: sum(cursor.rowcount for cursor in self._upserts[name].run(connection, wanted))
            for name, wanted in rows.items()
            if wanted
        }


class SingleStatement:
    """Upserts for PostgreSQL: one statement for all tables, because each statement is a round trip.

    Citus plans such a statement for each table in turn, whether or not there are rows. So `on_node` has a statement for
    each table, which returns the rows that it has written.
    """

    def __init__(
        self, statement: Executable, on_node: Mapping[str, Executable], columns: Mapping[str, Sequence[str]]
    ) -> None:
        self._statement = Prepared(statement)
        self._on_node = {name: ManyArrays(each, columns[name]) for name, each in on_node.items()}
        self._columns = columns

    def write(self, connection: Connection, rows: Mapping[str, Rows]) -> Mapping[str, int]:
        """Write `rows`, by table, each in the order of the table's columns. Return how many were written, by table."""
        if is_distributed(connection):
            return {name: len(self._on_node[name].fetch(connection, wanted)) for name, wanted in rows.items() if wanted}
        parameters: dict[str, Any] = {}
        for name, columns in self._columns.items():
            wanted = rows.get(name) or ()
            parameters.update(zip(columns, zip(*wanted, strict=True) if wanted else [()] * len(columns), strict=True))
        (counts,) = self._statement.fetch(connection, parameters)
        return dict(zip(self._columns, counts, strict=True))
