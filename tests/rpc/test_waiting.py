"""max_wait in virtual time: when it answers, with which state, and how many reads of the whole cart it costs.

The database is one that other processes write to, and that passes no hints on, so its revisions are compared.
"""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
from cartgrpc.v1 import cart_pb2

from cart_grpc.names import item_id_of
from cart_grpc.rpc.messages import cart_message
from cart_grpc.rpc.waiting import Waiting
from cart_grpc.store.read.cart_json import CartJson
from cart_grpc.store.store import Store
from tests.simulation.clock import SimulatedClock
from tests.simulation.database import Database, DatabaseFaults, SimulatedEngine
from tests.simulation.loop import Process, VirtualLoop
from tests.store.writes import KEY, SKU, add, answered, claim_one, clear, release_all, remove, silent, snapshot

State = cart_pb2.Reservation.State
ITEM_ID = item_id_of(SKU, {})


class Setting:
    """Two processes on one database; calls wait in the first. `whole_count` is the first's reads of whole carts."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.loop = loop
        self.database = Database(
            loop, SimulatedClock(loop, follows=False), DatabaseFaults(), Random(1), lambda *_: None
        )
        self.numbers = itertools.count()
        self.store, self.other = self._open("first"), self._open("second")
        self.has_room = True
        self.waiting = Waiting(self.store, lambda: self.has_room)
        self.whole_count = self.read_count = self.check_count = 0
        reads = self.store.reads.carts[0]
        real = reads._fetch

        async def fetch(wanted: Sequence[Any]) -> Any:
            found = await real(wanted)
            self.read_count += len(found)
            self.whole_count += sum(isinstance(one, CartJson) for one in found.values())
            return found

        reads._fetch = fetch  # type: ignore[method-assign]
        find_changed = self.store.reads.find_changed

        async def counted(known: Sequence[Any]) -> Any:
            self.check_count += 1
            return await find_changed(known)

        self.store.reads.find_changed = counted  # type: ignore[method-assign]

    def _open(self, name: str) -> Store:
        return Store(SimulatedEngine(self.database, Process(self.loop, name)), self._new_id, queue_size=100)

    def _new_id(self) -> str:
        return f"{next(self.numbers):032x}"

    async def cart(self) -> cart_pb2.Cart:
        """The cart's message, as a reply that waits has it at first. Its reads do not count."""
        found = await snapshot(self.other)
        return cart_message(found.cart, found.lines, found.now, reconciling=found.reconciling)

    def after(self, seconds: float, work: Callable[[], Awaitable[Any]]) -> "asyncio.Task[Any]":
        """Do `work` later."""

        async def later() -> None:
            await asyncio.sleep(seconds)
            await work()

        return self.loop.create_task(later())

    async def wait(self, cart: cart_pb2.Cart, max_wait: float, deadline: float | None = None) -> float:
        """Wait for the cart; return the seconds that it took."""
        context: Any = SimpleNamespace(time_remaining=lambda: deadline)
        begin = self.loop.time()
        await self.waiting.await_cart(KEY, cart, max_wait, context)
        return self.loop.time() - begin

    async def wait_for_release(self, item_id: str | None, max_wait: float) -> tuple[bool, float]:
        """Wait for a release; return whether it is still not confirmed, and the seconds that it took."""
        context: Any = SimpleNamespace(time_remaining=lambda: None)
        begin = self.loop.time()
        return await self.waiting.await_release(KEY, item_id, max_wait, context), self.loop.time() - begin


def run(test: Callable[[Setting], Awaitable[None]]) -> None:
    """Run `test` in virtual time; afterwards nothing may be left of its watches."""
    loop = VirtualLoop()

    async def whole() -> None:
        setting = Setting(loop)
        for store in (setting.store, setting.other):
            await store.start()
        await test(setting)
        watches = setting.store.watches
        await asyncio.sleep(1)
        assert (watches._subscriptions, watches._due, watches._task) == ({}, {}, None)

    asyncio.set_event_loop(loop)
    try:
        loop.run_until_complete(whole())
    finally:
        asyncio.set_event_loop(None)
        loop.close()


def test_a_max_wait_of_30_seconds_for_a_hanging_call_reads_the_whole_cart_twice() -> None:
    async def test(setting: Setting) -> None:
        await setting.store.mutate(add())
        await claim_one(setting.other)
        cart = await setting.cart()
        assert await setting.wait(cart, 30) == pytest.approx(30, abs=0.1)
        assert cart.items[0].reservation.state == State.STATE_PENDING
        assert setting.whole_count == 2
        # Each second, the database is asked whether the cart was modified.
        assert 29 <= setting.check_count <= 31

    run(test)


def test_an_attempt_without_an_answer_shows_in_the_reply_and_costs_no_read_of_the_whole_cart() -> None:
    async def test(setting: Setting) -> None:
        await setting.store.mutate(add())
        cart = await setting.cart()
        for second in (2, 5):
            setting.after(second, lambda: _attempt(setting.other))
        await setting.wait(cart, 10)
        assert cart.items[0].reservation.attempt_count == 2
        assert "UNAVAILABLE" in cart.items[0].reservation.message
        assert setting.whole_count == 2

    async def _attempt(store: Store) -> None:
        await store.record(silent(await claim_one(store)))

    run(test)


@pytest.mark.parametrize(("is_own", "most"), [(True, 0.1), (False, 1.2)], ids=["own commit", "another process"])
def test_a_settled_reservation_is_answered_at_once_or_with_the_next_check(*, is_own: bool, most: float) -> None:
    async def test(setting: Setting) -> None:
        await setting.store.mutate(add())
        claimed = await claim_one(setting.other)
        cart = await setting.cart()
        recorder = setting.store if is_own else setting.other
        setting.after(10, lambda: recorder.record(answered(claimed)))
        assert 10 < await setting.wait(cart, 30) < 10 + most
        assert cart.items[0].reservation.state == State.STATE_RESERVED
        assert not cart.reconciling
        assert setting.whole_count == 2

    run(test)


def test_a_removed_items_wait_ends_with_its_own_release_alone() -> None:
    async def test(setting: Setting) -> None:
        await setting.store.mutate(add())
        await setting.store.record(answered(await claim_one(setting.store)))
        await setting.store.mutate(remove())
        is_releasing, seconds = await setting.wait_for_release(item_id_of("another", {}), 30)
        assert not is_releasing
        assert seconds < 0.1
        setting.after(4, lambda: release_all(setting.other))
        is_releasing, seconds = await setting.wait_for_release(ITEM_ID, 30)
        assert not is_releasing
        assert 4 < seconds < 5.5

    run(test)


def test_a_release_that_is_not_confirmed_in_time_is_reported() -> None:
    async def test(setting: Setting) -> None:
        await setting.store.mutate(add())
        await claim_one(setting.store)
        await setting.store.mutate(clear())
        for item_id in (ITEM_ID, None):
            is_releasing, seconds = await setting.wait_for_release(item_id, 3)
            assert is_releasing
            assert seconds == pytest.approx(3, abs=0.1)

    run(test)


def test_the_wait_ends_before_the_callers_deadline() -> None:
    async def test(setting: Setting) -> None:
        await setting.store.mutate(add())
        assert await setting.wait(await setting.cart(), 30, deadline=2) == pytest.approx(1.9, abs=0.05)

    run(test)


def test_without_room_to_wait_the_reply_shows_the_current_state_after_one_read() -> None:
    async def test(setting: Setting) -> None:
        await setting.store.mutate(add())
        cart = await setting.cart()
        await setting.store.record(silent(await claim_one(setting.store)))
        setting.has_room = False
        assert await setting.wait(cart, 30) < 0.1
        assert cart.items[0].reservation.attempt_count == 1
        assert setting.read_count == 1

    run(test)


def test_a_stop_answers_waiting_calls_with_the_current_state() -> None:
    async def test(setting: Setting) -> None:
        await setting.store.mutate(add())
        cart = await setting.cart()

        async def stop() -> None:
            setting.store.notifier.close()

        setting.after(3, stop)
        assert await setting.wait(cart, 30) == pytest.approx(3, abs=0.1)
        # A call that begins to wait after that is answered at once.
        assert await setting.wait(cart, 30) < 0.1

    run(test)


def test_an_item_that_another_call_has_removed_is_not_waited_for() -> None:
    async def test(setting: Setting) -> None:
        await setting.store.mutate(add())
        await claim_one(setting.other)
        cart = await setting.cart()
        setting.after(5, lambda: setting.other.mutate(remove()))
        assert 5 < await setting.wait(cart, 30) < 6.5
        assert await setting.wait(cart, 30) < 0.1
        assert cart.items[0].reconciling

    run(test)


def test_a_cart_that_is_purged_meanwhile_ends_the_wait() -> None:
    async def test(setting: Setting) -> None:
        await setting.store.mutate(add())
        cart = await setting.cart()

        async def purge() -> None:
            for table in ("items", "reservations", "carts"):
                setting.database.raw.execute(f"DELETE FROM {table}")  # noqa: S608 - our own tables' names

        setting.after(5, purge)
        assert 5 < await setting.wait(cart, 30) < 6.5
        assert cart.items[0].reconciling

    run(test)
