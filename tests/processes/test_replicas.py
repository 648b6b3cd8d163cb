"""Another replica takes over from one that died or stopped. A SQLite file admits one process only."""

import asyncio
import signal
import time
from contextlib import AsyncExitStack

import pytest
from cartgrpc.v1 import cart_pb2, cart_service_pb2

from tests.processes.harness import LISTENS, Programs, connected
from tests.service.conftest import Replica

State = cart_pb2.Reservation.State
LEASE = 2.0


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGSTOP], ids=lambda by: by.name)
async def test_another_replica_takes_over_from_one_lost_during_a_call_when_its_lease_ends(
    by: signal.Signals, shared_url: str, programs: Programs
) -> None:
    # The first call hangs for longer than a takeover takes, and still takes effect afterwards.
    hang = LEASE + 10
    simulated = await programs.simulate("--latency", f"{hang}s")
    settings = {
        "listen": "127.0.0.1:0",
        "database_url": shared_url,
        "reservation_url": simulated.url,
        "reservation_lease": str(LEASE),
        "reservation_poll_interval": "0.1",
    }
    lost = programs.start("serve", **settings)
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(connected((await lost.says(LISTENS))[1]))
        item = await first.add(quantity=2)
        await simulated.until_called(1)
        began = time.monotonic()
        lost.send(by)
        await simulated.set_faults(latency=0.0)
        other = programs.start("serve", **settings)
        second = await stack.enter_async_context(connected((await other.says(LISTENS))[1]))
        cart = await second.settled()
        assert time.monotonic() - began < hang, "the hanging call settled the reservation, not a takeover"
        assert cart.items[0].reservation.state == State.STATE_RESERVED
        if by == signal.SIGSTOP:
            lost.send(signal.SIGCONT)
        # Wait until the hanging call has ended.
        await asyncio.sleep(max(0.0, began + hang + 0.5 - time.monotonic()))
        assert await second.get() == cart
        effects, _ = await simulated.effects()
        assert [(effect.reservation_id, effect.quantity_after) for effect in effects] == [
            (item.reservation.reservation_id, 2)
        ]
        if by == signal.SIGSTOP:
            await _check_works(first, second, item)
    assert programs.complaints() == []


async def _check_works(first: Replica, second: Replica, item: cart_pb2.Item) -> None:
    """The stopped replica serves and reconciles again, and both replicas return the same cart."""
    await first.stub.RemoveItem(cart_service_pb2.RemoveItemRequest(name=item.name))
    assert not (await first.settled()).items
    assert not (await second.get()).items


async def test_a_second_process_on_a_sqlite_file_names_the_file_and_exits_while_the_first_continues(
    programs: Programs,
) -> None:
    file = programs.folder / "cart.db"
    settings = {"listen": "127.0.0.1:0", "database_url": f"sqlite:///{file}"}
    first = programs.start("serve", **settings)
    async with connected((await first.says(LISTENS))[1]) as client:
        item = await client.add()
        second = programs.start("serve", **settings)
        assert await second.ended(20) == 2
        (line,) = second.errors.splitlines()
        assert line.startswith(f"cart-grpc: CART_DATABASE_URL: {file} cannot be used: it is in use by another process")
        assert (await client.get()).items[0].name == item.name
        assert (await client.add()).quantity == 2
    assert first.is_running
