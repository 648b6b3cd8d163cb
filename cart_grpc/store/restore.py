"""What a database that was restored from a backup needs before anything is started on it."""

from sqlalchemy import Connection, case, null, text, update

from cart_grpc.store.schema import reservations

# More than is ever said about one reservation, and far from the end of 64 bits however often it is added.
STRIDE = 2**32
_OTHERS = text(
    "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'cart-grpc' AND pid <> pg_backend_pid() "
    "AND datname = current_database()"
)


class InUse(Exception):
    """Somebody else works on the database. Its text says so, after the database's name."""


def raise_revisions(connection: Connection) -> int:
    """Raise what is unfinished above everything ever said to the Reservation API, which remembers more than this
    database does, and make it due. Returns how many reservations that were.

    On SQLite the file's lock keeps others out. Raises InUse.
    """
    if connection.dialect.name == "postgresql":
        if connection.execute(_OTHERS).scalar_one():
            raise InUse("is in use: stop every cart-grpc first")
        connection.execute(text("SET LOCAL statement_timeout = 0"))
    raised = reservations.c.revision + STRIDE
    statement = (
        update(reservations)
        .where(reservations.c.finish_time.is_(None))
        .values(
            revision=raised,
            intent_revision=raised,
            # What is held may have been changed after the backup: until it is answered anew, nothing is certain.
            reserved_cap=0,
            due_time=case((reservations.c.waiting, null()), else_=0),
            lease_expire_time=null(),
        )
    )
    return connection.execute(statement).rowcount
