"""PostgreSQL only: a session has our settings, whatever the database, the role or the URL says."""

import logging
import re
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import Connection, make_url

from cart_grpc import app, database_setup
from cart_grpc.carts.refusals import DatabaseUnavailable
from cart_grpc.startup import StartupError
from cart_grpc.store import revisions
from cart_grpc.store.engine import connect
from cart_grpc.store.postgresql import PostgresqlEngine
from cart_grpc.store.postgresql_session import READ_ONLY, SETTINGS
from cart_grpc.store.prepared import fetch
from cart_grpc.store.store import Store
from tests.databases import open_database
from tests.store.roles import administer, as_plain_role, open_readers
from tests.store.writes import KEY, SKU, add, answered, claim_one, decode, remove, snapshot

# Of statements and of one schema.
pytestmark = pytest.mark.one_shard

# A value for each of our settings with which something would break, or be slow.
HOSTILE = {
    "array_nulls": "off",
    "bytea_output": "escape",
    "citus.override_table_visibility": "on",
    "client_encoding": "LATIN1",
    "client_min_messages": "debug5",
    "datestyle": "German, DMY",
    "default_transaction_deferrable": "on",
    "default_transaction_isolation": "serializable",
    "enable_bitmapscan": "off",
    "enable_indexonlyscan": "off",
    "enable_indexscan": "off",
    "enable_nestloop": "off",
    "enable_sort": "off",
    "exit_on_error": "on",
    "extra_float_digits": "-15",
    "from_collapse_limit": "1",
    "idle_in_transaction_session_timeout": "3s",
    "idle_session_timeout": "3s",
    "ignore_checksum_failure": "on",
    "intervalstyle": "iso_8601",
    "jit": "on",
    "join_collapse_limit": "1",
    "lock_timeout": "3s",
    "max_parallel_workers_per_gather": "8",
    "row_security": "off",
    "session_replication_role": "replica",
    "standard_conforming_strings": "off",
    "statement_timeout": "3s",
    "synchronous_commit": "off",
    "timezone": "Asia/Kathmandu",
    "transaction_timeout": "3s",
    "transform_null_equals": "on",
    "zero_damaged_pages": "on",
}
PLANS = {"plan_cache_mode": "force_custom_plan", "enable_seqscan": "off"}


@pytest.fixture
def backend() -> str:
    return "postgresql"


def show(*names: str) -> Callable[[Connection], dict[str, str]]:
    """Return a function that reads settings of its session."""
    return lambda connection: {name: connection.exec_driver_sql(f"SHOW {name}").scalar_one() for name in names}


def test_there_is_a_hostile_value_for_each_of_our_settings() -> None:
    assert HOSTILE.keys() == SETTINGS.keys()
    assert not HOSTILE.items() & SETTINGS.items()


@pytest.fixture(params=["database", "role"])
async def changed_url(request: pytest.FixtureRequest, database_url: str) -> str:
    """The URL of a database whose settings, or those of its role, are all hostile."""
    role, url = await as_plain_role(database_url, "SUPERUSER")
    target = f"ROLE {role}" if request.param == "role" else f"DATABASE {make_url(url).database}"
    changes = {**HOSTILE, **PLANS}.items()
    await administer(database_url, "; ".join(f"ALTER {target} SET {name} = '{value}'" for name, value in changes))
    return url


async def test_sessions_have_our_settings_whatever_the_database_or_the_role_says(changed_url: str) -> None:
    engine = connect(changed_url, app.clock)
    for run, extra in ((engine.transact, {}), (engine.read, READ_ONLY), (engine.query, READ_ONLY)):
        assert await run(show(*SETTINGS, *extra)) == {**SETTINGS, **extra}
    kept = {"plan_cache_mode": "force_generic_plan", "enable_seqscan": "off"}
    assert await engine.transact(show(*kept)) == kept
    assert await engine.read(show(*kept)) == kept
    assert await engine.query(show(*kept)) == {"plan_cache_mode": "force_custom_plan", "enable_seqscan": "on"}
    store = Store(engine, app.new_id, queue_size=1000)
    await store.start()
    assert decode(await store.mutate(add(request_id="r1"))) == {SKU: 1}
    await store.record(answered(await claim_one(store)))
    assert (await snapshot(store)).cart.total_quantity == 1
    assert (await store.operator_reads.get_stats()).due_count == 0
    assert decode(await store.mutate(remove())) == {}
    await store.close()
    await engine.close()


async def test_a_session_keeps_a_setting_that_promises_more(database_url: str) -> None:
    database = make_url(database_url).database
    await administer(database_url, f"ALTER DATABASE {database} SET synchronous_commit = remote_apply")
    engine = open_database(database_url)
    assert await engine.transact(show("synchronous_commit")) == {"synchronous_commit": "remote_apply"}
    await engine.close()


@pytest.mark.parametrize(
    ("name", "value"),
    [("session_replication_role", "replica"), ("zero_damaged_pages", "on"), ("ignore_checksum_failure", "on")],
)
async def test_a_start_fails_if_the_role_may_not_set_what_a_promise_depends_on(
    database_url: str, name: str, value: str
) -> None:
    role, url = await as_plain_role(database_url)
    await administer(database_url, f"ALTER ROLE {role} SET {name} = {value}")
    engine = open_database(url)
    with pytest.raises(StartupError, match=f'a session cannot get a setting that it needs: .*"{name}"') as failed:
        await database_setup.check(engine)
    # Waiting does not help.
    assert type(failed.value) is StartupError
    assert "\n" not in str(failed.value)
    await engine.close()


async def test_a_database_that_an_operator_made_read_only_stays_so(database_url: str) -> None:
    database = make_url(database_url).database
    await administer(database_url, f"ALTER DATABASE {database} SET default_transaction_read_only = on")
    engine = open_database(database_url)
    await database_setup.check(engine)
    await open_readers(engine)
    store = Store(engine, app.new_id, queue_size=1000)
    with pytest.raises(DatabaseUnavailable):
        await store.ping()
    assert await store.reads.find_cart(KEY) is None
    await engine.close()


@pytest.mark.parametrize("where", ["role", "url"])
async def test_the_schema_that_the_search_path_names_is_used_and_kept(database_url: str, where: str) -> None:
    role, url = await as_plain_role(database_url)
    await administer(database_url, f"CREATE SCHEMA shop AUTHORIZATION {role}")
    if where == "role":
        await administer(database_url, f"ALTER ROLE {role} SET search_path = nowhere, shop")
    else:
        url += "&options=-csearch_path%3Dshop"
    engine = open_database(url)
    assert await database_setup.upgrade(engine) == (None, revisions.LATEST)
    await administer(database_url, f"ALTER ROLE {role} SET search_path = public")
    await database_setup.check(engine)
    # The readers' sessions are opened after the change.
    for run in (engine.transact, engine.read, engine.query):
        assert await run(show("search_path")) == {"search_path": "shop, pg_temp"}
    await engine.close()


async def test_a_search_path_without_a_schema_is_refused(database_url: str) -> None:
    role, url = await as_plain_role(database_url)
    await administer(database_url, f"ALTER ROLE {role} SET search_path = nowhere")
    engine = open_database(url)
    with pytest.raises(StartupError, match="search_path names no schema"):
        await database_setup.upgrade(engine)
    await engine.close()


async def test_no_two_sessions_have_statements_of_one_name(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a pooler that changes sessions could run one in the place of another."""

    def names(connection: Connection) -> set[str]:
        rows = fetch(connection, "SELECT name FROM pg_prepared_statements WHERE name <> ''", ())
        # SQLAlchemy's statements, too.
        return {name for (name,) in rows} | set(
            connection.exec_driver_sql("SELECT name FROM pg_prepared_statements WHERE name <> ''").scalars()
        )

    engines = [open_database(database_url) for _ in range(2)]
    found = []
    for engine in engines:
        # The driver counts its statements in each process, and here two engines stand for two processes.
        monkeypatch.setattr(asyncpg.connection, "_uid", 0)
        found += [await run(names) for run in (engine.transact, engine.read, engine.query)]
    assert all(found)
    assert len(set().union(*found)) == sum(map(len, found))
    for engine in engines:
        await engine.close()


async def test_a_start_warns_in_one_line_of_what_a_power_failure_can_lose(
    engine: PostgresqlEngine, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        await database_setup.warn_of_risks(engine)
    expected = "PostgreSQL runs with fsync=off and full_page_writes=off: a power failure can lose acknowledged writes"
    assert [record.getMessage() for record in caplog.records] == [expected]


async def test_operators_can_look_up_every_setting_that_others_can_change(engine: PostgresqlEngine) -> None:
    text = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
    section = text.partition("## PostgreSQL: settings that others can change")[2].partition("### Connections")[0]
    patterns = re.findall(r"`([a-z0-9_.*]+)`", section)
    query = "SELECT lower(name) FROM pg_settings WHERE context IN ('user', 'superuser') AND name NOT LIKE '%.%'"
    names = await engine.transact(lambda connection: connection.exec_driver_sql(query).scalars().all())
    assert len(names) > 150
    assert [name for name in names if not any(fnmatch(name, pattern) for pattern in patterns)] == []
    # Those that are set are named one by one.
    assert {*SETTINGS, *PLANS, *READ_ONLY, "search_path"} <= {*patterns}
