"""A server starts on a restored backup, and nobody ran `reservations after-restore`."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from cartgrpc.v1 import cart_pb2, cart_service_pb2

from cart_grpc.settings import Settings
from cart_grpc.simulator.simulator import Simulator
from tests.service.conftest import running_replica

State = cart_pb2.Reservation.State


@pytest.fixture
def backend() -> str:
    """SQLite. What follows is the same on both databases."""
    return "sqlite"


async def test_without_after_restore_items_show_the_backups_state_until_their_renewal_which_alarms_and_corrects_them(
    settings: Settings, simulator: Simulator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    restored = tmp_path / "restored.db"
    async with running_replica(settings) as replica:
        raised = await replica.add("kettle")
        removed = await replica.add("filters")
        await replica.settled()
        with closing(sqlite3.connect(tmp_path / "cart.db")) as database, closing(sqlite3.connect(restored)) as copy:
            database.backup(copy)
        for quantity in (2, 3, 4):
            item = cart_pb2.Item(name=raised.name, quantity=quantity)
            await replica.stub.UpdateItem(cart_service_pb2.UpdateItemRequest(item=item))
            await replica.settled()
        await replica.stub.RemoveItem(cart_service_pb2.RemoveItemRequest(name=removed.name))
        await replica.settled()
    assert "ALARM" not in caplog.text
    settings = settings.with_changes(database_url=type(settings.database_url)(f"sqlite:///{restored}"))
    async with running_replica(settings) as replica:
        # Wrong for the filters: nothing is held any more.
        states = {item.sku: item.reservation.state for item in (await replica.get()).items}
        assert states == {"kettle": State.STATE_RESERVED, "filters": State.STATE_RESERVED}
        assert simulator.levels("filters").held == 0
    with closing(sqlite3.connect(restored)) as database:
        database.execute("UPDATE reservations SET due_time = 1")
        database.commit()
    async with running_replica(settings) as replica:

        def is_corrected(cart: cart_pb2.Cart) -> bool:
            found = {item.sku: item.reservation for item in cart.items}
            filters = found["filters"]
            return not cart.reconciling and filters.state == State.STATE_REJECTED and not filters.reserved_quantity

        cart = await replica.eventually(is_corrected)
        assert cart.items[0].reservation.state == State.STATE_RESERVED
        assert cart.items[0].reservation.reserved_quantity == simulator.levels("kettle").held == 1
    assert "the Reservation API decided revision 4, but our latest is 2" in caplog.text
