"""A backup is taken under load, the database is lost, and the restored one agrees with the Reservation API again."""

import asyncio
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import grpc
import pytest

from cart_grpc.carts.model import Line
from cart_grpc.carts.progress import ProgressState, progress
from cart_grpc.protocol.reservation import Observed
from cart_grpc.simulator.stock import Levels
from tests.invariants.effects import check_decisions, check_granted, check_stock
from tests.invariants.history import ApiEffect, Dump
from tests.invariants.rows import check_settled, check_tables
from tests.postgres import PostgresServer
from tests.processes import truth
from tests.processes.caller import Caller
from tests.processes.harness import LISTENS, Programs, Replicas, Simulated, connected
from tests.processes.load import HOT_SKU, SCARCE, SKUS, Load
from tests.processes.shopper import GOODS

STOCK = {**dict.fromkeys((*SKUS, HOT_SKU, *GOODS), 1_000_000), SCARCE: 12}
HOLD_TTL = 60
# The API has sold what the database, as it was at the backup, still holds.
SOLD_LATER = re.compile(r"ALARM .*the Reservation API says COMMITTED, but the reservation should be (HELD|RELEASED)")


class Backup(Protocol):
    """A way to back a database up while a server uses it. `url` names the database."""

    @property
    def url(self) -> str: ...

    def take(self) -> None:
        """Make the backup."""
        ...

    def restore(self) -> str:
        """Restore it into a new place. The server has ended. Return the URL of the restored database."""
        ...


@dataclass
class FileBackup:
    """A copy of a SQLite file that `copy` makes."""

    folder: Path
    copy: Callable[[Path, Path], None]

    @property
    def url(self) -> str:
        return f"sqlite:///{self.folder}/cart.db"

    def take(self) -> None:
        self.copy(self.folder / "cart.db", self.folder / "backup.db")

    def restore(self) -> str:
        shutil.copy(self.folder / "backup.db", self.folder / "restored.db")
        return f"sqlite:///{self.folder}/restored.db"


def copy_with_python(source: Path, target: Path) -> None:
    with closing(sqlite3.connect(source)) as database, closing(sqlite3.connect(target)) as copy:
        database.backup(copy)


def copy_with_command(source: Path, target: Path) -> None:
    subprocess.run(["sqlite3", source, f".backup {target}"], check=True)


def vacuum_into(source: Path, target: Path) -> None:
    subprocess.run(["sqlite3", source, f"VACUUM INTO '{target}'"], check=True)


@dataclass
class Dumped:
    """A dump of `pg_dump`, and a new database that `pg_restore` fills."""

    server: PostgresServer
    url: str

    def take(self) -> None:
        self.server.run_program("pg_dump", "--format=custom", f"--file={self.server.directory}/dump", self._name)

    def restore(self) -> str:
        url = self.server.create_database(f"{self._name}_restored")
        dump = str(self.server.directory / "dump")
        self.server.run_program("pg_restore", "--exit-on-error", f"--dbname={self._name}_restored", dump)
        return url

    @property
    def _name(self) -> str:
        return self.url.partition("?")[0].rpartition("/")[2]


@pytest.mark.timeout(120)
async def test_a_sqlite_file_that_was_copied_while_serving_is_reconciled_after_a_restore(programs: Programs) -> None:
    await lose_and_restore(programs, FileBackup(programs.folder, copy_with_python))


@pytest.mark.timeout(120)
async def test_a_dump_of_postgresql_that_was_made_while_serving_is_reconciled_after_a_restore(
    programs: Programs, postgres: PostgresServer
) -> None:
    await lose_and_restore(programs, Dumped(postgres, postgres.create_database("lost")))


async def test_after_restore_refuses_the_log_of_the_lost_file_and_raises_revisions_above_those_of_an_earlier_restore(
    programs: Programs,
) -> None:
    file, backup = programs.folder / "cart.db", programs.folder / "backup.db"
    settings = {"listen": "127.0.0.1:0", "database_url": f"sqlite:///{file}", "reservation_url": "grpc://127.0.0.1:1"}
    server = programs.start("serve", **settings)
    async with connected((await server.says(LISTENS))[1]) as client:
        await client.add()
        copy_with_python(file, backup)
        await client.add()
    server.kill()
    shutil.copy(backup, file)
    raising = programs.start("reservations", "after-restore", **settings)
    assert await raising.ended(30) == 2
    assert "has a log (-wal), but a backup has none" in raising.errors
    # Nothing was opened, so the copy is still whole.
    assert file.read_bytes() == backup.read_bytes()
    file.with_name("cart.db-wal").unlink()
    revisions = []
    for _ in range(2):
        shutil.copy(backup, file)
        again = programs.start("reservations", "after-restore", **settings)
        assert await again.ended(30) == 0, again.errors
        assert again.output.startswith("1 unfinished reservations ")
        with closing(sqlite3.connect(file)) as database:
            revisions += database.execute("SELECT revision FROM reservations").fetchone()
    assert 2**32 < revisions[0] < revisions[1]


async def lose_and_restore(programs: Programs, backup: Backup) -> None:
    if not backup.url.startswith("sqlite:"):
        assert await programs.start("migrate", database_url=backup.url).ended(60) == 0
    stock = [argument for sku, quantity in STOCK.items() for argument in ("--stock", f"{sku}={quantity}")]
    simulated = await programs.simulate("--latency", "20ms", *stock)
    before, load = await run_until_lost(programs, simulated, backup)
    settings = settings_of(backup.restore(), simulated)
    raising = programs.start("reservations", "after-restore", **settings)
    assert await raising.ended(30) == 0, raising.errors
    assert re.match(r"[1-9][0-9]* unfinished reservations will be sent again", raising.output)
    await reconcile(programs, settings, load, simulated)
    effects = truth.read_effects(programs.folder / "journal.jsonl")
    found, now = await truth.dump(settings["database_url"])
    violations = await check_restored(simulated, effects, found, now)
    assert not violations, "\n".join(violations)
    known = {row.reservation_id for row in found.reservations}
    assert {effect.reservation_id for effect in effects[before:]} - known, "all that was made later is in the backup"
    assert [line for line in programs.complaints() if not SOLD_LATER.search(line)] == []


async def run_until_lost(programs: Programs, simulated: Simulated, backup: Backup) -> tuple[int, Load]:
    """Take the backup under load, go on, and kill the server. Return the number of effects before the backup."""
    replicas = Replicas(programs, settings_of(backup.url, simulated), count=1)
    load = Load(replicas, "restore", writers=4, adders=1, shoppers=2, pause=0.05)
    try:
        await replicas.start_all()
        load.start()
        await until_sold(load, 1)
        before = len((await simulated.effects())[0])
        await asyncio.to_thread(backup.take)
        await until_sold(load, load.sale_count + 2)
        await load.stop()
        replicas.kill(0)
    finally:
        await load.close()
    return before, load


def settings_of(database_url: str, simulated: Simulated) -> dict[str, str]:
    return {
        "listen": "127.0.0.1:0",
        "database_url": database_url,
        "reservation_url": simulated.url,
        "reservation_poll_interval": "0.1",
        "hold_ttl": f"{HOLD_TTL}s",
        "max_quantity_per_item": "1000000",
        "max_units_per_user": "1000000000",
    }


async def until_sold(load: Load, count: int) -> None:
    async with asyncio.timeout(60):
        while load.sale_count < count:
            load.check()
            await asyncio.sleep(0.05)


async def reconcile(programs: Programs, settings: dict[str, str], load: Load, simulated: Simulated) -> None:
    """Serve the restored database until all of its carts that callers knew are reconciled."""
    replicas = Replicas(programs, settings, count=1)
    await replicas.start_all()
    reader = Load(replicas, "read", writers=0, adders=0).reader
    try:
        async with asyncio.timeout(60):
            for cart in load.carts:
                while await is_reconciling(reader, cart):
                    await asyncio.sleep(0.05)
        await simulated.until_silent(0.5)
    finally:
        await reader.close()
    assert await replicas.stop(0) == 0


async def is_reconciling(reader: Caller, cart: str) -> bool:
    """Whether the cart is there and reconciles. It may be newer than the backup."""
    try:
        return (await reader.get(cart)).reconciling
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.NOT_FOUND:
            raise
        return False


async def check_restored(simulated: Simulated, effects: list[ApiEffect], found: Dump, now: int) -> list[str]:
    """The restored database agrees with the API on every reservation that it knows; the others end by themselves."""
    left = {sku: await simulated.stock(sku) for sku in STOCK}
    levels = {
        sku: Levels(one.available_quantity, one.held_quantity, one.committed_quantity) for sku, one in left.items()
    }
    rows = {row.reservation_id: row for row in found.reservations}
    # An item of a cart that was sold after the backup: it shows as much as was sold.
    sold = [item for item in found.items if rows[item.reservation_id].state is Observed.COMMITTED]
    shown = {progress(Line(item, rows[item.reservation_id]), now).state for item in sold}
    others = replace(found, items=[item for item in found.items if item not in sold])
    violations = [
        *check_decisions(effects),
        *check_granted(effects, others, now, lambda sku, reason: sku == SCARCE or reason == "RELEASED"),
        *check_stock(effects, STOCK, levels),
        *check_tables(found),
        *check_settled(found),
    ]
    if not shown <= {ProgressState.COMMITTED}:
        violations.append(f"sold items are shown as {shown}")
    last = {effect.reservation_id: effect for effect in effects}
    held = [one for one in last.values() if one.reservation_id not in rows and one.state is Observed.HELD]
    violations += [
        f"nobody knows {one}, and it does not end within the ttl"
        for one in held
        if one.expire_time is None or one.expire_time > one.time + HOLD_TTL * 1_000_000
    ]
    return violations
