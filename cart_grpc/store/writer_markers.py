"""The commit marker of each writer: the row that shows, after a broken COMMIT, whether the batch was committed.

Each batch writes its number into the row of its writer, in its own transaction. If the COMMIT breaks, a read of that
row waits for the transaction, and finds its number if it was committed. So the row must exist before the batch.

All functions run in a transaction that is open.
"""

from collections.abc import Iterable
from typing import Final

from sqlalchemy import Connection

from cart_grpc.store.queries import WriteQueries
from cart_grpc.store.rows import CommitMarker

# The process of a writer that has not committed for so long is gone.
DEFAULT_MARKER_RETENTION_US: Final = 90 * 24 * 3600 * 1_000_000


def register(queries: WriteQueries, writer_ids: Iterable[str], retention_us: int, connection: Connection) -> None:
    """Write the first commit marker of each writer, and delete those that are older than `retention_us`."""
    queries.delete_commit_markers(connection, queries.read_now(connection) - retention_us)
    for writer_id in writer_ids:
        write(queries, CommitMarker(writer_id, 0), connection)


def write(queries: WriteQueries, marker: CommitMarker, connection: Connection) -> None:
    """Write a marker alone."""
    queries.write_commit_marker(connection, marker, queries.read_now(connection))


def find_batch_number(queries: WriteQueries, marker: CommitMarker, connection: Connection) -> int | None:
    """Return the number of the last committed batch of the writer of `marker`, after which no other can appear.

    SQLite's log may still contain the transaction of a failed commit, and a crash would bring it back. Writing the
    marker again overwrites that part of the log.
    """
    found = queries.find_batch_number(connection, marker.writer_id)
    if found is not None and found != marker.batch_number:
        write(queries, CommitMarker(marker.writer_id, found), connection)
    return found
