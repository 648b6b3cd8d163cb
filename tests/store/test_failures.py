"""Each error of a database has its refusal, and errors of other causes have none."""

import sqlite3

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import InternalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from cart_grpc.carts.refusals import DatabaseDamaged, DatabaseFull, DatabaseUnavailable
from cart_grpc.store.engine import Engine
from cart_grpc.store.failures import find_refusal, is_unwritten, translate_failures


@pytest.mark.parametrize("backend", ["postgresql"])
@pytest.mark.parametrize(
    ("state", "refusal"), [("53100", DatabaseFull), ("XX001", DatabaseDamaged), ("53200", DatabaseUnavailable)]
)
async def test_each_sqlstate_has_its_refusal(engine: Engine, state: str, refusal: type[DatabaseUnavailable]) -> None:
    statement = text(f"DO $$ BEGIN RAISE 'raised' USING ERRCODE = '{state}'; END $$")
    with pytest.raises(Exception, match="raised") as failed:
        await engine.transact(lambda connection: connection.execute(statement))
    assert type(find_refusal(failed.value)) is refusal


def sqlite_error(kind: type[sqlite3.Error], code: int) -> sqlite3.Error:
    error = kind("failed")
    error.sqlite_errorcode = code
    return error


def internal_error(file: str) -> asyncpg.PostgresError:
    error = asyncpg.InternalServerError("failure on connection marked as essential: 10.0.0.1:5432")
    error.server_source_filename = file
    return error


@pytest.mark.parametrize(
    ("error", "refusal"),
    [
        (sqlite_error(sqlite3.OperationalError, sqlite3.SQLITE_FULL), DatabaseFull),
        (sqlite_error(sqlite3.OperationalError, sqlite3.SQLITE_BUSY_SNAPSHOT), DatabaseUnavailable),
        (sqlite_error(sqlite3.DatabaseError, sqlite3.SQLITE_CORRUPT), DatabaseDamaged),
        (sqlite_error(sqlite3.DatabaseError, sqlite3.SQLITE_CORRUPT_INDEX), DatabaseDamaged),
        (asyncpg.InterfaceError("connection is closed"), DatabaseUnavailable),
        (ConnectionResetError(), DatabaseUnavailable),
        (PoolTimeout(), DatabaseUnavailable),
        # Of Citus, which has lost a node.
        (internal_error("remote_transaction.c"), DatabaseUnavailable),
    ],
    ids=repr,
)
def test_each_driver_error_has_its_refusal(error: Exception, refusal: type[DatabaseUnavailable]) -> None:
    assert type(find_refusal(error)) is refusal
    with pytest.raises(refusal), translate_failures():
        raise error


def test_a_connection_that_broke_while_it_was_opened_has_a_refusal() -> None:
    """SQLAlchemy translates the driver's error into an InternalError, which alone means a bug."""
    error = InternalError("", None, translated := Exception("cannot switch to state 11"))
    translated.__cause__ = asyncpg.InternalClientError("cannot switch to state 11")
    assert type(find_refusal(error)) is DatabaseUnavailable
    translated.__cause__ = None
    assert find_refusal(error) is None


@pytest.mark.parametrize(
    "error",
    [
        sqlite_error(sqlite3.IntegrityError, sqlite3.SQLITE_CONSTRAINT_CHECK),
        asyncpg.CheckViolationError("no"),
        internal_error("execMain.c"),
        KeyError(),
    ],
    ids=repr,
)
def test_an_error_of_another_cause_has_no_refusal(error: Exception) -> None:
    assert find_refusal(error) is None
    with pytest.raises(type(error)), translate_failures():
        raise error


def test_only_a_failed_write_proves_that_a_commit_did_not_happen() -> None:
    codes = {sqlite3.SQLITE_FULL: True, sqlite3.SQLITE_IOERR_WRITE: True, sqlite3.SQLITE_IOERR_FSYNC: False}
    for code, unwritten in codes.items():
        assert is_unwritten(sqlite_error(sqlite3.OperationalError, code)) is unwritten
