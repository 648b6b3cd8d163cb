"""A SQLite file becomes smaller again when its rows are purged, in small steps."""

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, insert

from cart_grpc.commands.direct import Purge
from cart_grpc.names import user_key
from cart_grpc.store import schema
from cart_grpc.store.dialects import PAGES_PER_PURGE
from cart_grpc.store.engine import Engine
from cart_grpc.store.store import Store

COUNT = 1000
PURGE = Purge(0, 0, 0, 50)


@pytest.fixture
def backend() -> str:
    return "sqlite"


async def test_a_file_gives_free_pages_back_in_small_steps_as_its_rows_are_purged_and_keeps_a_quarter(
    store: Store, engine: Engine, tmp_path: Path
) -> None:
    await engine.transact(store_replies)
    most = await pages(engine)
    assert most > COUNT
    sizes = [most]
    while (deleted := await store.purge(PURGE)) or sizes[-1] > await pages(engine) or len(sizes) < 2:
        # One more: every 800 pages, SQLite has a page that says how the others are used.
        assert sizes[-1] - await pages(engine) <= PAGES_PER_PURGE + 1, f"too much in one transaction: {deleted} rows"
        sizes.append(await pages(engine))
    free = await ask(engine, "PRAGMA freelist_count")
    assert free <= sizes[-1] // 4 + 1
    assert sizes[-1] < most / 5
    await ask(engine, "PRAGMA wal_checkpoint(TRUNCATE)")
    assert (tmp_path / "cart.db").stat().st_size == sizes[-1] * 4096
    assert await ask(engine, "PRAGMA integrity_check") == "ok"


def store_replies(connection: Connection) -> None:
    """Store old replies of a page each."""
    user: dict[str, Any] = dict(zip(("slice", "user_id"), user_key("alice"), strict=True))
    totals = {"stored_bytes": COUNT * 10_000, "cart_count": 0, "item_count": 0, "unit_count": 0}
    connection.execute(insert(schema.users), user | totals)
    reply = {"fingerprint": b"", "reply": bytes(5_000), "create_time": 1}
    connection.execute(
        insert(schema.replies), [user | reply | {"request_id": f"request-{number}"} for number in range(COUNT)]
    )


async def pages(engine: Engine) -> int:
    return int(await ask(engine, "PRAGMA page_count"))


async def ask(engine: Engine, query: str) -> Any:
    return await engine.read(lambda connection: connection.exec_driver_sql(query).scalar())
