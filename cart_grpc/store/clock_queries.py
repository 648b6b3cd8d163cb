"""Runs the statements about steps of the database's clock, in a transaction that is open."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection

from cart_grpc.store import schema, statements
from cart_grpc.store.clock_steps import NO_STEP, ClockRow
from cart_grpc.store.dialects import Dialect
from cart_grpc.store.rows import CLOCK


class ClockQueries:
    """The statements of the table `clock`, and the one that moves the stored times after a step back."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._insert = dialect.insert(schema.clock).on_conflict_do_nothing()
        self._write = statements.upsert(dialect, schema.clock)
        self._move = statements.move_times()

    def lock(self, connection: Connection) -> ClockRow:
        """Lock and return the row. Insert it if it is missing: a row that does not exist cannot be locked."""
        connection.execute(self._insert, self._bind(NO_STEP))
        return CLOCK.to_value(connection.execute(statements.LOCK_CLOCK).one())

    def write(self, connection: Connection, row: ClockRow) -> None:
        """Write the row."""
        connection.execute(self._write, self._bind(row))

    def _bind(self, row: ClockRow) -> Mapping[str, Any] | Sequence[Mapping[str, Any]]:
        return self._dialect.bind_rows(schema.clock, [CLOCK.to_row(row)])

    def last_commit_time(self, connection: Connection) -> int:
        """Return the time of the last commit of any process, 0 if there was none."""
        return int(connection.execute(statements.LAST_COMMIT_TIME).scalar_one())

    def limit_commit_times(self, connection: Connection, now: int) -> None:
        """Let no commit be later than `now`."""
        connection.execute(statements.LIMIT_COMMIT_TIMES, {"now": now})

    def extend_attempts(self, connection: Connection, after: int, until: int) -> None:
        """Let attempts that end after `after` and before `until` end at `until`."""
        self._dialect.force_custom_plan(connection)
        connection.execute(statements.EXTEND_ATTEMPTS, {"after": after, "until": until})

    def move(self, connection: Connection, slices: range, by_us: int, now: int, latest: int) -> None:
        """Move the times in `slices` back by `by_us`, but not to before `now`; cut `uncertain_until` to `latest`."""
        self._dialect.force_custom_plan(connection)
        parameters = {"first": slices.start, "end": slices.stop, "by": by_us, "now": now, "latest": latest}
        connection.execute(self._move, parameters)
