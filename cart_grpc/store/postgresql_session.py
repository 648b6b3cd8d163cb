"""The sessions of PostgreSQL: every setting that a promise or a plan depends on, and the pooler in front, if any.

A database, a role or a connection pooler can change the settings of a session under us. So each new session sets its
own, with a statement: poolers refuse start-up parameters that they do not know. Then it reads them back.
docs/operations.md lists all settings that others can change, and says why none can break a promise.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Final
from weakref import WeakSet

import asyncpg
from sqlalchemy import Connection, text

from cart_grpc.store.failures import LOST_SESSION, Unsuitable, get_sqlstate
from cart_grpc.store.revisions import LATEST
from cart_grpc.store.schema import VERSION_TABLE
from cart_grpc.store.shards import HAS_CITUS, RECORD

Settings = Mapping[str, str]
Connect = Callable[[], Awaitable[asyncpg.Connection]]

# As `current_setting` shows them. A setting that this version of PostgreSQL does not have is left out.
SETTINGS: Final[Settings] = {
    # An acknowledged commit is on disk.
    "synchronous_commit": "on",
    # Transactions. The locks of a batch are right only under READ COMMITTED.
    "default_transaction_isolation": "read committed",
    "default_transaction_deferrable": "off",
    "statement_timeout": "30s",
    "lock_timeout": "10s",
    "idle_in_transaction_session_timeout": "30s",
    "idle_session_timeout": "0",
    "transaction_timeout": "0",
    "exit_on_error": "off",
    # Triggers and damage.
    "session_replication_role": "origin",
    "zero_damaged_pages": "off",
    "ignore_checksum_failure": "off",
    "row_security": "on",
    # The text of values and statements.
    "client_encoding": "UTF8",
    "standard_conforming_strings": "on",
    "transform_null_equals": "off",
    "array_nulls": "on",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "datestyle": "ISO, MDY",
    "intervalstyle": "postgres",
    "timezone": "UTC",
    "client_min_messages": "warning",
    # Plans. Compiling, or starting a worker, takes longer than these statements run.
    "jit": "off",
    "max_parallel_workers_per_gather": "0",
    "enable_indexscan": "on",
    "enable_indexonlyscan": "on",
    "enable_bitmapscan": "on",
    "enable_nestloop": "on",
    "enable_sort": "on",
    "from_collapse_limit": "8",
    "join_collapse_limit": "8",
    # Citus hides the tables of shards from every query of pg_class, with a function call for each row: the driver's
    # question for the types of a statement then takes a second. No statement of ours looks for tables by their names.
    "citus.override_table_visibility": "off",
}
# Planning a batch takes 1 ms, half of the time of one call, so plans are kept. A kept plan does not change until
# ANALYZE runs, and the tables may have been empty when it was made. So every kept plan must find its rows by an index,
# even if the statistics were wrong. Other statements run after `Dialect.force_custom_plan`.
KEPT_PLANS: Final[Settings] = {"plan_cache_mode": "force_generic_plan", "enable_seqscan": "off"}
CUSTOM_PLANS: Final[Settings] = {"plan_cache_mode": "force_custom_plan", "enable_seqscan": "on"}
READ_ONLY: Final[Settings] = {"default_transaction_read_only": "on"}
# Values that promise more than ours.
_STRONGER: Final[Mapping[str, Collection[str]]] = {"synchronous_commit": ("remote_apply",)}
# Only a superuser, or a role with a grant, can set these.
_RESERVED: Final = frozenset({"session_replication_role", "zero_damaged_pages", "ignore_checksum_failure"})
# An advisory lock that every session shares. Who gets it alone knows that no server runs.
IN_USE: Final = 4849335204292
# Every session also shares the advisory lock with these two keys: this one, and the number of its release's schema.
# Releases with schema 0001 have only the lock above.
_REVISIONS: Final = 1129071202
# A process that migrates a schema holds the advisory lock with these two keys: this one, and the schema's OID.
MIGRATES: Final = 1129071203
_SHARE_LOCKS: Final = f"SELECT pg_advisory_lock_shared({IN_USE}), pg_advisory_lock_shared({_REVISIONS}, {int(LATEST)})"
_OLDER_SESSIONS: Final = text("""
    SELECT 'pid ' || pid || coalesce(' from ' || host(client_addr), '')
    FROM pg_locks AS used JOIN pg_stat_activity AS session USING (pid)
    WHERE used.locktype = 'advisory' AND used.database = session.datid AND session.datname = current_database()
        AND (used.classid::bigint << 32 | used.objid::bigint) = :in_use AND used.objsubid = 1
        AND NOT EXISTS (
            SELECT FROM pg_locks AS newer
            WHERE newer.locktype = 'advisory' AND newer.pid = used.pid AND newer.database = used.database
                AND newer.classid::bigint = :revisions AND newer.objid::bigint >= :oldest AND newer.objsubid = 2
        )
    ORDER BY pid
""")
# Without those of migrations: they lock no table of another shard.
_OLDEST_TRANSACTION: Final = text(f"""
    SELECT floor(extract(epoch FROM clock_timestamp() - xact_start)) || ' s old: pid ' || pid || ' ' || application_name
    FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL AND NOT EXISTS (
        SELECT FROM pg_locks AS l
        WHERE l.pid = pg_stat_activity.pid AND locktype = 'advisory' AND classid::bigint = {MIGRATES} AND objsubid = 2
    )
    ORDER BY xact_start LIMIT 1
""")  # noqa: S608 - a number

# Our tables are in the schema that the search_path of the database, the role or the URL names, and in no other.
_LOOK: Final = f"""
    SELECT pg_backend_pid() AS pid,
        coalesce(
            (
                SELECT relnamespace::regnamespace::text FROM pg_class
                WHERE oid = coalesce(to_regclass($2), to_regclass('{RECORD}'))
            ),
            quote_ident(current_schema())
        ) AS schema,
        ARRAY(
            SELECT current_setting(name, true) FROM unnest($1::text[]) WITH ORDINALITY AS n(name, i) ORDER BY i
        ) AS settings,
        {HAS_CITUS} AS is_distributed
"""  # noqa: S608 - our own text
_SET: Final = "SELECT set_config(name, value, false) FROM unnest($1::text[], $2::text[]) AS wanted(name, value)"
_CANNOT_SET: Final = (
    asyncpg.CantChangeRuntimeParamError,
    asyncpg.InsufficientPrivilegeError,
    asyncpg.InvalidParameterValueError,
    asyncpg.UndefinedObjectError,
)
PREPARE_SECONDS: Final = 5.0
_PROBE_SECONDS: Final = 2.0
_CHANGES_SESSIONS: Final = (
    "a connection pooler changes sessions between transactions or statements, so settings are lost on which promises "
    "depend; set pool_mode=session for this database (PgBouncer), or connect to PostgreSQL directly"
)


class Sessions:
    """Opens the sessions of one process on one database, and knows which are open.

    `connect` connects once. `given` are the settings in the database's URL. `statement_cache_size` is how many prepared
    statements a session keeps. `is_distributed`: the last session found Citus in the database.
    """

    def __init__(self, connect: Connect, given: Settings, statement_cache_size: int = 100) -> None:
        self.statement_cache_size = statement_cache_size
        self.is_distributed = False
        self._connect = connect
        self._given = {"application_name": "cart-grpc", **given}
        self._opened: WeakSet[asyncpg.Connection] = WeakSet()
        self._schema: str | None = None
        self._is_pooler_known = False

    def count(self) -> int:
        """The number of sessions that are open."""
        return sum(not connection.is_closed() for connection in self._opened)

    async def open(self, settings: Settings) -> asyncpg.Connection:
        """Open a session with `settings`.

        Raises Unsuitable if it does not get them, OSError or the driver's error if the database is not available.
        """
        connection = await self._connect()
        try:
            async with asyncio.timeout(PREPARE_SECONDS):
                await self._prepare(connection, settings)
        except TimeoutError as error:
            connection.terminate()
            waits = "a connection pooler has no server connection free" if self._is_pooler_known else "no answer"
            raise ConnectionError(f"{waits} for {PREPARE_SECONDS:g} s") from error
        except BaseException:
            connection.terminate()
            raise
        self._opened.add(connection)
        return connection

    def note_error(self, error: Exception) -> None:
        """If a pooler has changed a session, its mode is no longer the one that was found at the start."""
        if get_sqlstate(error) in LOST_SESSION:
            self._is_pooler_known = False

    async def _prepare(self, connection: asyncpg.Connection, settings: Settings) -> None:
        names = [*settings, "search_path"]
        found = await _look(connection, names)
        is_pooled = found["pid"] != connection.get_server_pid()
        if is_pooled:
            # A pooler answers a connection with a made-up process id.
            await self._check_pooler(connection)
            # The pooler's last client may have left its own settings, and statements under the driver's names.
            await connection.execute("DISCARD ALL")
        if is_pooled or len(self._given) > 1:
            await _set(connection, self._given)
            found = await _look(connection, names)
        if found["schema"] is None:
            raise Unsuitable("search_path names no schema that exists and that the role may use")
        # Later sessions keep the first one's: a new search_path must not lead to other tables while we run.
        self._schema = self._schema or found["schema"]
        wanted = {**settings, "search_path": f"{self._schema}, pg_temp"}
        self.is_distributed = found["is_distributed"]
        if self.is_distributed:
            # Citus cannot make a generic plan for a statement with arrays: it has to see the shard.
            wanted |= {name: value for name, value in CUSTOM_PLANS.items() if name in settings}
        await _set(connection, _to_set(wanted, found["settings"]))
        found = await _look(connection, names)
        if refused := _differing(wanted, found["settings"]):
            raise Unsuitable(f"a session does not keep these settings: {', '.join(sorted(refused))}")
        await connection.execute(_SHARE_LOCKS)

    async def _check_pooler(self, connection: asyncpg.Connection) -> None:
        """Raise Unsuitable if a pooler lets several connections share one session."""
        if self._is_pooler_known:
            return
        other = None
        try:
            async with asyncio.timeout(_PROBE_SECONDS):
                other = await self._connect()
                is_shared = await _changes_servers(connection, other)
        except TimeoutError as error:
            raise ConnectionError("a connection pooler has no second server connection free") from error
        finally:
            if other is not None:
                other.terminate()
        if is_shared:
            raise Unsuitable(_CHANGES_SESSIONS)
        self._is_pooler_known = True


async def _look(connection: asyncpg.Connection, names: Collection[str]) -> asyncpg.Record:
    """Read the session. One transaction, and a statement without a name: nothing outlives it behind any pooler."""
    try:
        await connection.execute("BEGIN")
    except asyncpg.PostgresError as error:
        # PgBouncer with pool_mode=statement. The message is all that tells it from a connection that is cut.
        if "statement pooling" in str(error):
            raise Unsuitable(_CHANGES_SESSIONS) from error
        raise
    statement = await connection.prepare(_LOOK, name="")
    found = await statement.fetchrow(list(names), VERSION_TABLE)
    await connection.execute("COMMIT")
    assert found is not None  # noqa: S101 - a SELECT without FROM returns one row
    return found


async def _changes_servers(connection: asyncpg.Connection, other: asyncpg.Connection) -> bool:
    """Whether a pooler gives transactions of one connection different sessions, or two connections the same one."""

    async def pid() -> int:
        return int((await _look(connection, ()))["pid"])

    first = await pid()
    await other.execute("BEGIN")
    statement = await other.prepare("SELECT pg_backend_pid()", name="")
    taken = await statement.fetchval()
    # The other transaction keeps its session busy, so here a pooler must choose another one.
    pids = {first, await pid()}
    await other.execute("ROLLBACK")
    pids |= {await pid() for _ in range(3)}
    return taken in pids or len(pids) > 1


def _to_set(wanted: Settings, found: Collection[str | None]) -> dict[str, str]:
    """The settings that a session sets, also to the value that they have: otherwise a reload could change them."""
    differing = _differing(wanted, found)
    return {
        name: differing.get(name, current)
        for name, current in zip(wanted, found, strict=True)
        if current is not None and (name in differing or name not in _RESERVED)
    }


def _differing(wanted: Settings, found: Collection[str | None]) -> dict[str, str]:
    """The settings of `wanted` whose value in `found`, in the same order, promises less. None: no such setting."""
    return {
        name: value
        for (name, value), current in zip(wanted.items(), found, strict=True)
        if current is not None and current != value and current not in _STRONGER.get(name, ())
    }


async def _set(connection: asyncpg.Connection, wanted: Settings) -> None:
    try:
        statement = await connection.prepare(_SET, name="")
        await statement.fetch(list(wanted), list(wanted.values()))
    except _CANNOT_SET as error:
        raise Unsuitable(f"a session cannot get a setting that it needs: {error}") from error


def find_older_sessions(connection: Connection, oldest: int) -> list[str]:
    """Return a description of each session of a release whose schema has a number below `oldest`."""
    parameters = {"in_use": IN_USE, "revisions": _REVISIONS, "oldest": oldest}
    return list(connection.execute(_OLDER_SESSIONS, parameters).scalars())


def find_oldest_transaction(connection: Connection) -> str | None:
    """Return a description of the oldest transaction of the other sessions, None if there is none."""
    found: str | None = connection.execute(_OLDEST_TRANSACTION).scalar_one_or_none()
    return found
