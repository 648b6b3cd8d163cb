"""After restoring a backup and before starting any server: raise the revisions of unfinished reservations."""

from sqlalchemy import Connection, bindparam, case, null, text, update

from cart_grpc.carts.model import CheckoutState
from cart_grpc.store.dialects import Dialect
from cart_grpc.store.postgresql_session import IN_USE
from cart_grpc.store.schema import Int64, checkouts, reservations
from cart_grpc.store.shards import is_distributed

# More revisions than one reservation ever gets without a restore.
STRIDE = 2**32
# Every session of a server holds a shared lock.
_LOCK = text(f"SELECT pg_try_advisory_xact_lock({IN_USE})")
# A lock is known to its node only, and servers may be connected to others.
_USED_ELSEWHERE = text(f"""
    SELECT coalesce(bool_or(result::int > 0), false)
    FROM run_command_on_all_nodes($$
        SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = database
        WHERE datname = current_database() AND locktype = 'advisory'
            AND (classid::bigint << 32 | objid::bigint) = {IN_USE} AND objsubid = 1
    $$)
    WHERE success AND nodeid NOT IN (SELECT nodeid FROM pg_dist_node JOIN pg_dist_local_group USING (groupid))
""")  # noqa: S608 - our own number


class InUse(Exception):
    """Other sessions use the database. The text follows the database's name."""


def keep_servers_out(connection: Connection) -> None:
    """Keep servers out until the transaction ends. Raises InUse if one is connected. SQLite's file has its own lock."""
    if connection.dialect.name != "postgresql":
        return
    is_alone = connection.execute(_LOCK).scalar_one()
    if not is_alone or (is_distributed(connection) and connection.execute(_USED_ELSEWHERE).scalar_one()):
        raise InUse("is in use: stop every cart-grpc first")


def raise_revisions(connection: Connection, dialect: Dialect) -> int:
    """Raise every unfinished reservation's revision above any that was ever sent, and make it due. Return how many.

    The new revision is the database's time in microseconds. So a second restore of the same backup raises it above what
    was sent after the first one: a reservation never gets a million revisions a second. STRIDE is for a clock that was
    set back.

    The Reservation API may remember revisions that are newer than the backup. It may also have sold what a checkout
    asked for after the backup, so a FAILED checkout waits for new answers.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SET LOCAL statement_timeout = 0"))
    now = bindparam("now", dialect.read_now(connection), type_=Int64)
    beyond = reservations.c.revision + STRIDE
    raised = case((beyond > now, beyond), else_=now)
    statement = (
        update(reservations)
        .where(reservations.c.finish_time.is_(None))
        .values(
            revision=raised,
            intent_revision=raised,
            # The held quantity may have changed after the backup, so nothing is certain until the next answer.
            reserved_cap=0,
            due_time=case((reservations.c.waiting, null()), else_=0),
            lease_expire_time=null(),
        )
    )
    is_failed = checkouts.c.state == CheckoutState.FAILED
    connection.execute(update(checkouts).where(is_failed).values(state=int(CheckoutState.COMPLETING)))
    return connection.execute(statement).rowcount
