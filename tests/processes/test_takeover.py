"""Another replica claims a lost replica's work within a second after its leases end, and not before."""

import re
import signal
from contextlib import AsyncExitStack

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from tests.processes.harness import LISTENS, Programs, connected

LEASE = 1.0
SECOND = 1_000_000
ITEMS = 20

# Record each claim by the database's clock: when the previous lease was to end, and when the claim was made.
WATCH = (
    "CREATE TABLE seen_claims (reservation_id text, lease_expire_time bigint, claimed_at bigint)",
    """CREATE FUNCTION see_claim() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO seen_claims VALUES
            (NEW.reservation_id, OLD.lease_expire_time, floor(extract(epoch FROM clock_timestamp()) * 1000000));
        RETURN NULL; END $$""",
    """CREATE TRIGGER see_claim AFTER UPDATE ON reservations FOR EACH ROW
        WHEN (NEW.lease_epoch > OLD.lease_epoch) EXECUTE FUNCTION see_claim()""",
)


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGSTOP], ids=lambda by: by.name)
@pytest.mark.one_shard
async def test_another_replica_claims_within_a_second_after_the_lease_ends_and_not_before(
    by: signal.Signals, shared_url: str, programs: Programs
) -> None:
    simulated = await programs.simulate("--latency", "5m")
    settings = {
        "listen": "127.0.0.1:0",
        "database_url": shared_url,
        "reservation_url": simulated.url,
        "reservation_lease": str(LEASE),
        "reservation_poll_interval": "0.1",
    }
    async with AsyncExitStack() as stack:
        database = create_async_engine(shared_url, isolation_level="AUTOCOMMIT")
        stack.push_async_callback(database.dispose)
        connection = await stack.enter_async_context(database.connect())
        for statement in WATCH:
            await connection.execute(text(statement))
        lost = programs.start("serve", **settings)
        client = await stack.enter_async_context(connected((await lost.says(LISTENS))[1]))
        for number in range(ITEMS):
            await client.add(f"sku{number}")
        await simulated.until_called(ITEMS)
        other = programs.start("serve", **settings)
        await other.says(LISTENS)
        lost.send(by)
        # The lost replica's calls hang, so new calls come from the other replica.
        await simulated.until_called(2 * ITEMS)
        rows = (await connection.execute(text("SELECT * FROM seen_claims WHERE lease_expire_time IS NOT NULL"))).all()
        assert len({row.reservation_id for row in rows}) == len(rows) == ITEMS
        taken = re.findall(r"WARNING claims_taken_over took over (\d+) reservations", other.errors)
        assert sum(map(int, taken)) == ITEMS
        assert "claims_taken_over" not in lost.errors
        for row in rows:
            assert row.lease_expire_time <= row.claimed_at <= row.lease_expire_time + SECOND
    assert programs.complaints() == []
