"""The interface of an engine, and `connect`. `sqlite` and `postgresql` implement it; `dialects` has their SQL."""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar

from sqlalchemy import Connection, make_url

from cart_grpc.names import CartKey
from cart_grpc.store import database_url
from cart_grpc.store.change_notifier import OnChange
from cart_grpc.store.dialects import Dialect
from cart_grpc.store.pool_usage import PoolUsage
from cart_grpc.store.postgresql import PostgresqlEngine
from cart_grpc.store.sqlite import SqliteEngine
from cart_grpc.tls.reloaded_files import NamedFile

T = TypeVar("T")
Clock = Callable[[], int]


class Hints(Protocol):
    """Tells other processes on the same database which carts have changed. Hints may be lost."""

    def send(self, changed: Iterable[CartKey]) -> None:
        """Tell other processes soon that these carts have changed. Never raises or waits."""
        ...

    def listen(self, on_change: OnChange, on_gap: Callable[[], None]) -> None:
        """Call `on_change` for the hints of other processes from now on, and `on_gap` when hints may have been lost.

        A second call with the same `on_change` changes nothing.
        """
        ...


class Engine(Protocol):
    """A connected database.

    `name` is its URL with the password hidden. `shards` are its shards, in the order of their slices: this engine
    itself if there is one. `schema` is the one that the statements of a shard name, None if they leave it to the search
    path. `locks_users`: a batch must lock the rows of its users. `is_shared`: other processes write, too. `hints` pass
    changes on to them, None if nothing does. `is_in_process`: its work takes the interpreter lock from the event loop.
    `has_log`: before the first transaction, a log stands beside the file, which SQLite will apply to it.
    """

    name: str
    dialect: Dialect
    locks_users: bool
    is_shared: bool
    is_in_process: bool
    schema: str | None

    @property
    def shards(self) -> Sequence["Engine"]: ...

    @property
    def has_log(self) -> bool: ...

    @property
    def hints(self) -> Hints | None: ...

    def shard_of(self, slice_: int) -> "Engine":
        """Return the shard that has the users of a slice."""
        ...

    async def transact(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a transaction on the writer's connection. Return its result once the commit is durable.

        `work` runs to its end even if the caller is cancelled. Raises CommitFailed if the commit may or may not have
        happened. Otherwise raises what `work` or the database raised, and nothing is done.
        """
        ...

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Run `work`, which reads with one statement, on a read-only connection that keeps plans. Return its result.

        Both kinds of reads run `work` again on another connection if the first turns out dead.
        """
        ...

    async def query(self, work: Callable[[Connection], T]) -> T:
        """Run `work`, which reads, on a read-only connection that plans each statement. Return its result."""
        ...

    def write_at_once(self, count: int) -> None:
        """Let up to `count` transactions run at once from now on, if the database is not in the process."""
        ...

    def pools(self) -> Sequence[PoolUsage]:
        """Return how much of each of its pools is in use: `write`, `read` and `query`."""
        ...

    async def close(self) -> None:
        """Close every connection, the writer's last."""
        ...


def connect(url: str, clock: Clock, password: NamedFile | None = None, *, shard_count: int = 1) -> Engine:
    """Return the engine for a PostgreSQL URL, or a SQLAlchemy URL with the backend `sqlite`. Raises ValueError.

    `clock` returns this process's time in microseconds; only SQLite uses it. `password` is a file that each new session
    of PostgreSQL reads. `shard_count` is one of `shards.COUNTS`; SQLite has one shard. Raises FileError if the file
    cannot be used, OSError if a SQLite file cannot be used.
    """
    if database_url.SCHEME.match(url):
        return PostgresqlEngine(database_url.parse(url), password, shard_count)
    if shard_count > 1:
        raise ValueError("SQLite has one shard: unset CART_DATABASE_SHARDS")
    if password:
        raise password.fault("SQLite has no password")
    return SqliteEngine(make_url(url), clock)
