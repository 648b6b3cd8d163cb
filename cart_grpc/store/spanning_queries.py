"""The statements of a batch about users of two shards, or about all shards: each runs once in each shard that it names.

The shards commit in one transaction; a distributed PostgreSQL uses two-phase commit. Every batch locks the users of a
shard before those of the next one, in the order of their keys, so two batches cannot deadlock.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, Final, TypeVar

from sqlalchemy import Connection

from cart_grpc.carts.refusals import DatabaseUnavailable
from cart_grpc.commands.unit_of_work import ReadSet
from cart_grpc.names import UserKey
from cart_grpc.protocol.reservation import Reservation
from cart_grpc.store import schema, statements
from cart_grpc.store.clock_steps import NO_STEP, ClockRow, is_applied_in_all
from cart_grpc.store.dialects import Dialect, Key, built_once
from cart_grpc.store.prepared import Prepared, Rows
from cart_grpc.store.queries import WriteQueries
from cart_grpc.store.rows import CLOCK
from cart_grpc.store.shards import first_slices, schema_names, shard_index, use_schema

T = TypeVar("T")
_MARKERS: Final = schema.commit_markers.name


@built_once
def spanning_queries(dialect: Dialect, shard_count: int) -> "SpanningQueries":
    """Return the statements of batches about users of two shards."""
    return SpanningQueries(dialect, schema_names(shard_count))


class SpanningQueries(WriteQueries):
    """The statements of a batch, on several shards of one database."""

    def __init__(self, dialect: Dialect, schemas: Sequence[str]) -> None:
        super().__init__(dialect, lock_users=True)
        self._schemas = schemas
        self._share_clock = Prepared(statements.SHARE_CLOCK)

    def lock_users(self, connection: Connection, users: Collection[UserKey]) -> int:
        times, clocks = list[int](), list[ClockRow]()
        for part in self._each(connection, users, _slice):
            times.append(super().lock_users(connection, part))
            # A step back waits for this batch, or the batch for the step.
            clocks += [CLOCK.to_value(row) for row in self._share_clock.fetch(connection, {})] or [NO_STEP]
        if not times:
            return self.read_now(connection)
        if not is_applied_in_all(clocks, max(times)):
            # The batch is tried again, and soon the times of all these shards have moved.
            raise DatabaseUnavailable
        return max(times)

    def load(self, connection: Connection, reads: ReadSet) -> tuple[Mapping[str, Rows], bool]:
        found: dict[str, list[Sequence[Any]]] = defaultdict(list)
        is_paused = False
        for part in self._each_read_set(connection, reads):
            rows, is_shard_paused = super().load(connection, part)
            is_paused = is_paused or is_shard_paused
            for name, of_table in rows.items():
                found[name] += of_table
        return found, is_paused

    def settle(self, connection: Connection, changes: Sequence[tuple[Reservation, Reservation, bool]]) -> set[str]:
        settled: set[str] = set()
        for part in self._each(connection, changes, lambda change: change[0].cart.slice):
            settled |= super().settle(connection, part)
        return settled

    def write(self, connection: Connection, rows: Mapping[str, Rows]) -> None:
        tagged = [(name, row) for name, of_table in rows.items() for row in of_table]
        for part in self._each(connection, tagged, lambda tagged: int(tagged[1][0])):
            of_shard: dict[str, list[Sequence[Any]]] = {name: [] for name in rows}
            for name, row in part:
                of_shard[name].append(row)
            # A process that starts compares the clock with the last commit in each shard.
            of_shard[_MARKERS] = list(rows.get(_MARKERS, ()))
            super().write(connection, of_shard)

    def delete_items(self, connection: Connection, keys: Sequence[Key]) -> None:
        for part in self._each(connection, keys, _slice):
            super().delete_items(connection, part)

    def delete_reservations(self, connection: Connection, keys: Sequence[Key]) -> None:
        for part in self._each(connection, keys, _slice):
            super().delete_reservations(connection, part)

    def delete_empty_users(self, connection: Connection, users: Sequence[UserKey]) -> None:
        for part in self._each(connection, users, _slice):
            super().delete_empty_users(connection, part)

    def pause(self, connection: Connection, reason: str, now: int) -> None:
        for _ in self._each(connection, first_slices(len(self._schemas)), int):
            super().pause(connection, reason, now)

    def resume(self, connection: Connection) -> None:
        for _ in self._each(connection, first_slices(len(self._schemas)), int):
            super().resume(connection)

    def _each(self, connection: Connection, values: Iterable[T], slice_of: Callable[[T], int]) -> Iterator[list[T]]:
        """Yield the `values` of each shard, in the order of the shards, while the connection uses its schema."""
        parts: dict[int, list[T]] = defaultdict(list)
        for value in values:
            parts[shard_index(slice_of(value), len(self._schemas))].append(value)
        for number in sorted(parts):
            use_schema(connection, self._schemas[number])
            yield parts[number]
        # The marker that tells whether the batch was committed is in the first shard.
        use_schema(connection, self._schemas[0])

    def _each_read_set(self, connection: Connection, reads: ReadSet) -> Iterator[ReadSet]:
        tagged = [(field.name, key) for field in fields(reads) for key in getattr(reads, field.name)]
        for part in self._each(connection, tagged, lambda tagged: _slice_of_key(tagged[1])):
            of_shard = ReadSet()
            for name, key in part:
                getattr(of_shard, name).add(key)
            yield of_shard


def _slice(key: Key) -> int:
    return int(key[0])


def _slice_of_key(key: Any) -> int:
    """The slice of a key of a ReadSet: it comes first, in the key itself or in its first part."""
    first = key[0]
    return int(first if isinstance(first, int) else first[0])
