"""No statement scans a table, so finished rows do not make writes and reads slower."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Connection, event
from sqlalchemy.engine import Engine as SyncEngine

from cart_grpc import app
from cart_grpc.background.erasure import erase
from cart_grpc.carts.checkout_refusals import CartFrozen
from cart_grpc.carts.model import CartState, CheckoutState
from cart_grpc.commands.direct import EraseRows, ExtendLeases, Purge, ReturnClaims
from cart_grpc.commands.erase import EraseUser
from cart_grpc.commands.operator import Release, Retry
from cart_grpc.names import cart_key, user_key
from cart_grpc.protocol.lanes import HOLD_LANE, RELEASE_LANE
from cart_grpc.store import migration_run, prepared
from cart_grpc.store.connection_pool import ConnectionPool
from cart_grpc.store.engine import Engine, connect
from cart_grpc.store.postgresql import PostgresqlEngine
from cart_grpc.store.read.cart_search import CartSearch
from cart_grpc.store.read.checkout_reads import CheckoutPage, OperatorCheckoutPage
from cart_grpc.store.read.operator_reads import BACKLOG, WorkState
from cart_grpc.store.read.reads import Page
from cart_grpc.store.read.reservation_search import ReservationPage
from cart_grpc.store.sqlite import SqliteEngine
from cart_grpc.store.store import Store
from tests.postgres import PostgresServer
from tests.store.checkouts import begin, claim_of_checkout, complete, hold_items, id_in, sold
from tests.store.writes import KEY, LIMITS, SECOND, add, answered, claim, clear, readable, remove, snapshot

# Of statements and of one schema.
pytestmark = pytest.mark.one_shard

BUYER = cart_key(user_key("buyer"), "default")
COUNT_SQLITE = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000)"
COUNT_POSTGRESQL = "WITH n(i) AS (SELECT generate_series(1, 100000))"
FILL = {
    "users": "SELECT i % 256, 'u' || (i % 1000), 1000000, 0, 0, 0, NULL FROM n GROUP BY 1, 2",
    "reservations": (
        "SELECT i % 256, 'r' || i, 'u' || (i % 1000), 'c' || (i % 20), 'x', 'sku' || (i % 50), 1, "
        "CASE i % 10 WHEN 0 THEN 3 ELSE 1 END, 1, "
        "1, 1, 1, i, 1, 1, i, 1, '', '', 1 = 2, "
        "CASE WHEN i % 10 <> 0 THEN 9000000000000000 + i END, 0, 0, NULL, '', NULL, NULL, '', '', '', 1 = 2, NULL "
        "FROM n"
    ),
    "carts": (
        "SELECT i % 256, 'u' || (i % 1000), 'c' || i, 'uid', 1, '{}', '', 1 = 2, NULL, NULL, 1, 0, 1, 0, 1000, "
        "1, 1, i, i, '', '' FROM n "
        "WHERE i % 5 = 0"
    ),
    "items": (
        "SELECT i % 256, 'u' || (i % 1000), 'c' || i, 'x', 'uid' || i, 'sku', '{}', 1, NULL, '{}', 'r' || i, i, i "
        "FROM n WHERE i % 5 = 0"
    ),
    "checkouts": (
        "SELECT i % 256, 'u' || (i % 1000), 'k' || i, 'c' || i, 'uid', "
        "CASE WHEN i % 500 = 0 THEN 1 + i / 500 % 4 ELSE 3 END, "
        "1 = 2, '', 0, 1, 1, 'o' || i, '', 700, 1, 1, i, i, i FROM n WHERE i % 5 = 0"
    ),
    "checkout_items": (
        "SELECT i % 256, 'u' || (i % 1000), 'k' || i, 'x', 'c' || i, 'uid' || i, 'sku', '{}', 1, NULL, '{}', 'r' || i, "
        "i, i FROM n WHERE i % 5 = 0"
    ),
    "replies": "SELECT i % 256, 'u' || (i % 1000), 'q' || i, uid, uid, i FROM n WHERE i % 5 = 0",
}


def grow(connection: Connection) -> None:
    """Insert many holds that are due much later, finished reservations, and carts of other users."""
    postgresql = connection.dialect.name == "postgresql"
    counter = COUNT_POSTGRESQL if postgresql else COUNT_SQLITE
    for table, select in FILL.items():
        rows = select.replace("uid, uid", "'x'::bytea, 'x'::bytea" if postgresql else "x'78', x'78'")
        connection.exec_driver_sql(f"INSERT INTO {table} {counter} {rows}")


def fill(connection: Connection) -> None:
    """Grow the tables, and collect statistics for the planner."""
    grow(connection)
    connection.exec_driver_sql("ANALYZE")


@contextmanager
def collect_statements(*engines: SyncEngine) -> Iterator[list[tuple[str, Any]]]:
    """Collect the statements of `engines`, each once, with the parameters of its first run."""
    statements: dict[str, Any] = {}

    def listen(_1: Any, _2: Any, statement: str, parameters: Any, *_: Any) -> None:
        statements.setdefault(statement, parameters)

    real = prepared.fetch

    def fetch(connection: Connection, statement: str, values: Any) -> Any:
        # A server of other tests may ping its own database meanwhile.
        if connection.engine in engines:
            statements.setdefault(statement, tuple(values))
        return real(connection, statement, values)

    for engine in engines:
        event.listen(engine, "before_cursor_execute", listen)
    collected: list[tuple[str, Any]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepared, "fetch", fetch)
        yield collected
    for engine in engines:
        event.remove(engine, "before_cursor_execute", listen)
    collected += statements.items()


def _sync_engine(pool: ConnectionPool) -> SyncEngine:
    return pool.engine.sync_engine


class Planned:
    """A store on a large database, and the plans of its statements."""

    def __init__(self, store: Store, engine: Engine) -> None:
        assert isinstance(engine, SqliteEngine | PostgresqlEngine)
        self.store = store
        self.engine = engine
        self._explain = "EXPLAIN QUERY PLAN" if isinstance(engine, SqliteEngine) else "EXPLAIN"

    @property
    def writer(self) -> SyncEngine:
        return self.engine._writer if isinstance(self.engine, SqliteEngine) else _sync_engine(self.engine._writer)

    @property
    def read_engine(self) -> SyncEngine:
        return self.engine._read_engine if isinstance(self.engine, SqliteEngine) else _sync_engine(self.engine._reader)

    @property
    def query_engine(self) -> SyncEngine:
        if isinstance(self.engine, SqliteEngine):
            return self.engine.reader.sync_engine
        return _sync_engine(self.engine._query_reader)

    async def plans(self, statements: list[tuple[str, Any]]) -> dict[str, str]:
        """Return each statement that reads or changes rows, with its plan."""
        wanted = [pair for pair in statements if re.match(r"(WITH|SELECT|UPDATE|DELETE)\b", pair[0])]
        return {statement: await self.engine.transact(self._plan(statement, values)) for statement, values in wanted}

    def _plan(self, statement: str, parameters: Any) -> Any:
        def explain(connection: Connection) -> str:
            rows = connection.exec_driver_sql(f"{self._explain} {statement}", parameters).all()
            return "\n".join(str(row[-1]) for row in rows)

        return explain


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path_factory.mktemp('full')}/cart.db"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.create_database("cart_full")


@pytest.fixture(scope="module")
async def planned(url: str) -> AsyncIterator[Planned]:
    """Filled once for all tests of this module, because they look at plans and not at results."""
    engine = connect(url, app.clock)
    await migration_run.run(engine)
    await engine.transact(fill)
    store = Store(engine, app.new_id, queue_size=1000)
    await store.start()
    yield Planned(store, engine)
    await store.close()
    await engine.close()


def assert_no_scan(plans: dict[str, str]) -> None:
    """Assert that no plan reads a whole table or a whole index."""
    assert plans
    for statement, plan in plans.items():
        for line in plan.splitlines():
            table = re.search(
                r"\b(Seq Scan on|SCAN) (users|reservations|carts|items|checkouts|checkout_items|replies|wanted)\b", line
            )
            # SQLite says SCAN for a partial index, which contains only the wanted rows.
            allowed = re.search(
                r"USING (COVERING )?INDEX (reservations_(due|due_release|due_checkout|reconciling|set_aside|finished)|"
                r"checkouts_(open|running|finished))\b",
                line,
            )
            assert table is None or allowed, f"{statement}\n{plan}"


async def test_no_statement_of_the_write_path_scans_a_table(planned: Planned) -> None:
    store = planned.store
    with collect_statements(planned.writer) as statements:
        await asyncio.gather(*(store.mutate(add(f"sku{n}", request_id=f"r{n}")) for n in range(10)))
        await store.mutate(remove("sku1"))
        await store.mutate(clear())
        await store.mutate(add("sku2"))
    plans = await planned.plans(statements)
    assert_no_scan(plans)
    assert "reservations_reconciling" in "\n".join(plans.values())


async def test_claims_and_records_find_their_rows_by_the_partial_indexes(planned: Planned) -> None:
    store = planned.store
    for number in range(5):
        await store.mutate(add(f"claimed{number}"))
    await store.mutate(remove("claimed0"))
    with collect_statements(planned.writer) as statements:
        for lane in (HOLD_LANE, RELEASE_LANE):
            first, *_ = claimed = await claim(store, lane)
            await store.update_leases(ExtendLeases(claimed, 1))
            await store.update_leases(ReturnClaims(claimed))
            await store.record(answered(first))
    plans = await planned.plans(statements)
    assert_no_scan(plans)
    claims = [plan for statement, plan in plans.items() if statement.startswith("WITH candidates")]
    assert len(claims) == 2
    for index, plan in zip(("reservations_due", "reservations_due_release"), claims, strict=True):
        assert re.search(rf"\b{index}\b", plan), plan


async def test_writes_of_checkouts_find_their_rows_by_an_index(planned: Planned) -> None:
    store = planned.store
    await hold_items(store, "sold", "kept", key=BUYER)
    with collect_statements(planned.writer) as statements:
        reply = await store.mutate(begin(BUYER))
        with pytest.raises(CartFrozen):
            await store.mutate(add("more", key=BUYER))
        await store.mutate(complete(BUYER.checkout(id_in(reply))))
        for claimed in await claim_of_checkout(store):
            await store.record(sold(claimed))
        await store.purge(Purge(-SECOND, -SECOND, -SECOND, 10, -SECOND))
    with collect_statements(planned.query_engine) as searches:
        await store.unswept.find_ended_windows(10)
        await store.unswept.find_answered_checkouts(10)
    assert len(searches) == 2
    plans = await planned.plans([*statements, *searches])
    assert_no_scan(plans)
    for index in ("reservations_due_checkout", "checkouts_open", "checkouts_running", "checkouts_finished"):
        assert re.search(rf"\b{index}\b", "\n".join(plans.values())), index


async def test_purges_find_their_rows_by_an_index(planned: Planned) -> None:
    store = planned.store
    await store.mutate(add(request_id="purged"))
    with collect_statements(planned.writer) as statements:
        await store.purge(Purge(-SECOND, -SECOND, -SECOND, 10))
    plans = await planned.plans(statements)
    assert_no_scan(plans)
    for index in ("reservations_finished", "carts_ended", "replies_create_time"):
        assert re.search(rf"\b{index}\b", "\n".join(plans.values())), index


async def test_searches_read_a_range_of_the_primary_key(planned: Planned) -> None:
    store, key = planned.store, cart_key(user_key("u1"), "c1")
    with collect_statements(planned.query_engine) as statements:
        for prefix in ("", "u1"):
            search = CartSearch(5, prefix, frozenset({CartState.ACTIVE}), 1, "sku", key)
            await store.cart_searches.find(search)
        for parent in (None, key.user):
            page = ReservationPage(5, frozenset({WorkState.HELD}), 1, 0, (1, "x"), parent, "sku")
            await store.reservation_searches.find(page)
    plans = await planned.plans(statements)
    assert len(plans) == 5
    assert_no_scan(plans)


async def test_an_erasure_finds_its_rows_by_an_index(planned: Planned) -> None:
    store, user = planned.store, cart_key(user_key("erased"), "default")
    await store.mutate(add(key=user))
    with collect_statements(planned.writer, planned.query_engine) as statements:
        await store.intervene(EraseUser(user.user))
        for _ in range(4):
            await store.erasures.find_users(10)
            await erase(store, user.user)
        await store.erase_rows(EraseRows(user.user, 10))
    plans = await planned.plans([each for each in statements if "random" not in each[0]])
    assert_no_scan(plans)
    for index in ("reservations_ending", "carts_merged_into", "reservations_checkout"):
        assert re.search(rf"\b{index}\b", "\n".join(plans.values())), index


async def test_operator_reads_and_commands_find_their_rows_by_an_index(planned: Planned) -> None:
    store = planned.store
    await store.mutate(add("stuck"))
    reads = store.operator_reads
    with collect_statements(planned.query_engine) as statements:
        [first, *_] = readable(
            (await store.reservation_searches.find(ReservationPage(5, BACKLOG, 1, 0, (1, "x")))).reservations
        )
        await reads.get(first.reservation.reservation_id)
        await reads.get_stats()
    with collect_statements(planned.writer) as written:
        await store.intervene(Retry(first.reservation, LIMITS))
        await store.intervene(Release(first.reservation, "over", force=True))
    plans = await planned.plans([*statements, *written])
    assert_no_scan(plans)
    for index in (
        "reservations_pkey|sqlite_autoindex_reservations",
        "reservations_reconciling",
        "reservations_set_aside",
        "reservations_due",
    ):
        assert re.search(rf"\b({index})", "\n".join(plans.values())), index


async def test_the_gauges_read_partial_indexes_of_unfinished_rows_only(planned: Planned) -> None:
    await planned.store.mutate(add("measured"))
    with collect_statements(planned.query_engine) as statements:
        await planned.store.backlog_gauges.sample()
    plans = await planned.plans(statements)
    assert len(plans) == 4
    assert_no_scan(plans)
    (due,) = (plan for statement, plan in plans.items() if "lane" in statement)
    # Held reservations are due much later, so the time must limit the index search.
    assert len(re.findall(r"Index Cond: \(due_time <= |\(due_time(>\? AND \w+)?<\?\)", due)) == 3, due


async def test_the_search_for_due_rows_uses_the_time_as_an_index_condition(
    planned: Planned,
) -> None:
    store = planned.store
    with collect_statements(planned.query_engine, planned.read_engine) as statements:
        for lane in (HOLD_LANE, RELEASE_LANE):
            await store.reads.has_due(lane)
        await store.reads.find_idle_carts(10)
    plans = await planned.plans(statements)
    assert len(plans) == 3
    for plan in plans.values():
        # The time limits the index search; it is not a filter after it.
        assert re.search(
            r"Index Cond: \((due_time|expire_time) <= |\((due_time|expire_time)(>\? AND \w+)?<\?\)", plan
        ), plan


async def test_reads_of_checkouts_find_their_rows_by_an_index(planned: Planned) -> None:
    reads, key = planned.store.checkout_reads, KEY.checkout("k1")
    every, after = frozenset(CheckoutState), (1, "k1")
    with collect_statements(planned.query_engine) as statements:
        await reads.find(key)
        await reads.find_summary(key)
        for order in ("", "o1"):
            await reads.list_of_user(CheckoutPage(KEY.user, 5, every, order, after))
            await reads.list_of_all(OperatorCheckoutPage(5, every, 1, order, after))
    plans = await planned.plans(statements)
    assert_no_scan(plans)
    for index in (
        "checkouts_create_time",
        "checkouts_running",
        "checkouts_finished",
        "checkouts_order_reference",
        "reservations_checkout",
    ):
        assert re.search(rf"\b{index}\b", "\n".join(plans.values())), index


async def test_reads_find_their_rows_by_an_index(planned: Planned) -> None:
    store = planned.store
    await store.mutate(add())
    with collect_statements(planned.read_engine) as read:
        await snapshot(store)
    with collect_statements(planned.query_engine, planned.read_engine) as statements:
        for lane in (HOLD_LANE, RELEASE_LANE):
            await store.reads.has_due(lane)
        for order in ("name", "create_time", "update_time"):
            for descending in (False, True):
                await store.reads.list_carts(Page(KEY.user, 5, frozenset({CartState.ACTIVE}), order, descending, None))
    assert read
    plans = await planned.plans([*read, *statements])
    assert_no_scan(plans)
    for index in ("reservations_due", "reservations_reconciling"):
        assert re.search(rf"\b{index}\b", "\n".join(plans.values())), index
