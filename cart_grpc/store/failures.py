"""Which errors mean that the database is the problem: one table of codes for each driver, and the refusal for each.

A refusal says that nothing was done. An error without a refusal is a bug, or one command's fault.
"""

import re
import sqlite3
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import asyncpg
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from cart_grpc.carts.refusals import CallRefused, DatabaseDamaged, DatabaseFull, DatabaseUnavailable

READ_ONLY: Final = "25006"
# SQLSTATE classes: connection, authorisation, no such database, out of resources, operator intervention, system error.
_UNAVAILABLE_CLASSES = ("08", "28", "3D", "53", "57", "58")
# Data exception, integrity constraint violation.
_DATA_CLASSES = ("22", "23")
# A prepared statement is not there, or another one is: a pooler has put another session in the place of ours.
LOST_SESSION: Final = {"26000", "42P05"}
# Serialisation failure, deadlock, lock timeout, idle-in-transaction timeout, read-only; a table, a schema or the
# permission for it is missing, as during a restore.
_TRANSIENT = {"40001", "40P01", "55P03", "25P03", READ_ONLY, "42P01", "3F000", "42501", *LOST_SESSION}
# The database ended the session: an operator, a crash, a shutdown, a dropped database, three kinds of idleness.
_CUT = {"57P01", "57P02", "57P03", "57P04", "57P05", "25P03", "25P04", *LOST_SESSION}
# If Citus loses a node in the middle of a transaction, most of its errors have the code of a bug in the server. These
# files of its source raise them.
_INTERNAL = "XX000"
_CITUS_FILES = {
    "adaptive_executor.c", "connection_management.c", "placement_connection.c", "remote_commands.c",
    "remote_transaction.c",
}  # fmt: skip
_FULL = "53100"
_DAMAGED = {"XX001", "XX002"}
# InternalClientError: the connection was cut in the middle of an answer, and the driver has not noticed yet.
_ASYNCPG_BROKEN = asyncpg.InterfaceError | asyncpg.InternalClientError
_SQLITE_UNWRITTEN = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE}
_SQLITE_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


# Wrong user or password, no such database, no permission.
_LASTING = ("28", "3D", "42501")
# SQLAlchemy's name of the driver's exception, and anything that may be a URL's user and password.
_NOISE = re.compile(r"^<class '[^']*'>: |(?<=//)[^\s/]*@")
MAX_CAUSE_LENGTH: Final = 300


class CommitFailed(Exception):
    """COMMIT itself failed, so the transaction may or may not be durable. `result` is its function's return value."""

    def __init__(self, result: Any) -> None:
        super().__init__("COMMIT failed")
        self.result = result


class Unsuitable(Exception):
    """The database, or a pooler in front of it, cannot keep a promise of this service. Waiting does not help.

    The text is one line: the cause and the remedy.
    """


class NotMigrated(Unsuitable):
    """The schema is older than this release. `cart-grpc migrate` may still run."""


class ReadOnlyDatabase(Exception):
    """The database accepts no writes. Another server may be the primary, so the connection is replaced."""

    sqlstate = READ_ONLY

    def __init__(self) -> None:
        super().__init__("the database is read-only")


def find_refusal(error: BaseException) -> DatabaseUnavailable | None:
    """Return the refusal for `error` if the database caused it, None if the statement or our code did.

    A plain DatabaseUnavailable (no subclass) is transient: the same transaction may succeed if it runs again.
    """
    if isinstance(error, DatabaseUnavailable):
        return error
    if isinstance(error, OSError | TimeoutError | PoolTimeout | Unsuitable):
        return DatabaseUnavailable()
    origin = _find_origin(error)
    if isinstance(origin, sqlite3.Error):
        return _find_sqlite_refusal(origin)
    if _is_bad_argument(origin) or _is_bad_argument(getattr(origin, "__cause__", None)):
        return None
    state = get_sqlstate(error)
    if not state and not isinstance(error, DBAPIError | _ASYNCPG_BROKEN):
        return None
    if state == _FULL:
        return DatabaseFull()
    if state in _DAMAGED:
        return DatabaseDamaged()
    if _is_outage(state, origin) or getattr(error, "connection_invalidated", False):
        return DatabaseUnavailable()
    # SQLAlchemy has no class of its own for some errors of the driver, but names the driver's error as the cause.
    causes = (error, getattr(origin, "__cause__", None))
    if not state and any(isinstance(cause, OperationalError | InterfaceError | _ASYNCPG_BROKEN) for cause in causes):
        return DatabaseUnavailable()
    return None


def is_dead(error: BaseException) -> bool:
    """Whether `error` means that the connection is gone, so that the same statement may succeed on another one."""
    state = get_sqlstate(error)
    is_cut = state in _CUT or state.startswith("08") or not state
    return is_cut and type(find_refusal(error)) is DatabaseUnavailable


def is_row_at_fault(error: BaseException) -> bool:
    """Whether the values of a row made a statement or our code fail: another row, or the same one corrected, would not.

    An error in the statement itself, such as a missing column, is no row's fault: it would hit every row.
    """
    if find_refusal(error):
        return False
    origin = _find_origin(error)
    if isinstance(origin, sqlite3.IntegrityError | sqlite3.DataError):
        return True
    is_ours = isinstance(origin, ArithmeticError | LookupError | TypeError | ValueError)
    return is_ours or get_sqlstate(error).startswith(_DATA_CLASSES)


@contextmanager
def translate_failures() -> Iterator[None]:
    """Raise the refusal instead of an error that the database caused. Other errors pass unchanged."""
    try:
        yield
    except Exception as error:
        refusal = find_refusal(error)
        if refusal is None or refusal is error:
            raise
        raise refusal from error


def may_pass(error: BaseException) -> bool:
    """Whether waiting may mend an error at start. A wrong name, password or certificate stays wrong."""
    cause = find_cause(error)
    if isinstance(cause, ssl.SSLError) or get_sqlstate(cause).startswith(_LASTING):
        return False
    if isinstance(cause, Unsuitable):
        return isinstance(cause, NotMigrated)
    refusal = find_refusal(cause)
    return refusal is not None and not isinstance(refusal, DatabaseDamaged)


def find_cause(error: BaseException) -> BaseException:
    """Return the driver's error behind `error`, or `error` itself."""
    while isinstance(error, CallRefused | CommitFailed) and error.__cause__:
        error = error.__cause__
    return _find_origin(error)


def show_cause(error: BaseException) -> str:
    """Return the first line of the driver's error, without secrets and without characters that a terminal obeys."""
    cause = find_cause(error)
    if isinstance(cause, TimeoutError) and not str(cause):
        return "no answer in time"
    lines = str(cause).strip().splitlines() or [type(cause).__name__]
    line = _NOISE.sub("", lines[0])[:MAX_CAUSE_LENGTH]
    return "".join(each if each.isprintable() else "?" for each in line)


def is_unwritten(error: BaseException) -> bool:
    """Whether SQLite failed to write the transaction. It writes the commit record last, so nothing is committed."""
    return getattr(error, "sqlite_errorcode", 0) in _SQLITE_UNWRITTEN


def get_sqlstate(error: BaseException) -> str:
    """Return the SQLSTATE that PostgreSQL sent with `error`, or "" if it sent none."""
    origin = _find_origin(error)
    return str(getattr(origin, "sqlstate", None) or "")


def _is_bad_argument(error: BaseException | None) -> bool:
    """Whether asyncpg could not encode an argument, such as a number beyond 64 bits. It calls that InterfaceError."""
    return isinstance(error, ValueError) and not isinstance(error, asyncpg.ClientConfigurationError)


def _is_outage(state: str, origin: BaseException) -> bool:
    is_node_lost = state == _INTERNAL and _find_source(origin) in _CITUS_FILES
    return is_node_lost or state in _TRANSIENT or state.startswith(_UNAVAILABLE_CLASSES)


def _find_source(error: BaseException) -> str | None:
    """Return the file of the server's source that raised an error."""
    for each in (error, error.__cause__):
        if isinstance(each, asyncpg.PostgresError):
            name: str | None = each.server_source_filename
            return name
    return None


def _find_origin(error: BaseException) -> BaseException:
    """Return the driver's error that SQLAlchemy wrapped, or `error` itself."""
    wrapped = error.orig if isinstance(error, DBAPIError) else None
    return wrapped or error


def _find_sqlite_refusal(error: sqlite3.Error) -> DatabaseUnavailable | None:
    # The lowest byte is the primary result code; the bytes above it are the extended code.
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return DatabaseFull()
    if code in _SQLITE_DAMAGED:
        return DatabaseDamaged()
    return DatabaseUnavailable() if isinstance(error, sqlite3.OperationalError | sqlite3.InterfaceError) else None
