"""WatchCart on a real server: what a watcher sees, how its stream ends, and what its peers can cost."""

import asyncio
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from cartgrpc.v1 import cart_pb2, cart_service_pb2, cart_service_pb2_grpc
from sqlalchemy import text

from cart_grpc import app
from cart_grpc.carts.calls import Call, DeleteCart
from cart_grpc.carts.progress import HOLD_MARGIN_US
from cart_grpc.rpc import services as services_module
from cart_grpc.rpc import watching
from cart_grpc.rpc.server import Server
from cart_grpc.rpc.services import cart_service
from cart_grpc.store import schema
from cart_grpc.store.engine import Engine
from cart_grpc.store.store import Store
from tests.attacks.wire import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    PREFACE,
    SETTINGS,
    call_of,
    frame,
    message,
    wired,
)
from tests.databases import SHARDED, open_database
from tests.deadlines import growing
from tests.rpc.refusal import to_refusal
from tests.rpc.serving import admitting
from tests.store.conftest import engine, store
from tests.store.writes import (
    HOUR,
    KEY,
    LIMITS,
    SECOND,
    Wrapped,
    add,
    answered,
    claim_one,
    mutation,
    overwrite,
)
from tests.waiting import until

__all__ = ["engine", "store"]
NAME = KEY.name
PATH = "/cartgrpc.v1.CartService/WatchCart"
STATES = cart_pb2.Cart.State
GRACE = 20.0


@dataclass(frozen=True)
class Served:
    """A server without a reconciler, its store, and a channel of a client."""

    store: Store
    server: Server
    channel: grpc.aio.Channel

    @property
    def stub(self) -> "cart_service_pb2_grpc.CartServiceAsyncStub":
        return cart_service_pb2_grpc.CartServiceStub(self.channel)

    def watch(self, name: str = NAME) -> Any:
        return self.stub.WatchCart(cart_service_pb2.WatchCartRequest(name=name), timeout=60)

    async def get(self) -> cart_pb2.Cart:
        return (await self.stub.GetCart(cart_service_pb2.GetCartRequest(name=NAME), timeout=20)).cart

    async def delete(self) -> None:
        call: Call = DeleteCart(KEY)
        await self.store.mutate(mutation(call))

    def is_idle(self) -> bool:
        """Whether nothing is left of any watcher."""
        watches, streams = self.store.watches, self.server._streams
        left = (watches._subscriptions, watches._due, watches._task, watches._checking)
        return not any((*left, streams._tasks, streams._users, streams._connections))


@asynccontextmanager
async def serving(store: Store) -> AsyncIterator[Served]:
    server = Server(cart_service(store, LIMITS, admitting()), 20)
    await server.start("127.0.0.1:0")
    await server.open()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield Served(store, server, channel)
    await server.stop(0)


@pytest.fixture
async def served(store: Store) -> AsyncIterator[Served]:
    async with serving(store) as served:
        yield served


async def next_cart(call: Any) -> cart_pb2.Cart:
    reply = await call.read()
    assert reply is not grpc.aio.EOF
    assert reply.WhichOneof("content") == "cart"
    cart: cart_pb2.Cart = reply.cart
    return cart


async def rest(call: Any) -> list[cart_pb2.Cart]:
    """The states until the stream ends with OK."""
    carts = []
    while (reply := await call.read()) is not grpc.aio.EOF:
        carts.append(reply.cart)
    assert await call.code() == grpc.StatusCode.OK
    return carts


async def refused(call: Any) -> Any:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    return to_refusal(caught.value)


async def test_a_watcher_sees_the_current_state_each_newer_one_and_the_last_and_then_the_stream_ends(
    served: Served,
) -> None:
    refusal = await refused(served.watch())
    assert (refusal.code, refusal.info.reason) == ("NOT_FOUND", "CART_NOT_FOUND")
    await served.store.mutate(add())
    call = served.watch()
    first = await next_cart(call)
    assert first == await served.get()
    assert first.reconciling
    await served.store.record(answered(await claim_one(served.store)))
    second = await next_cart(call)
    assert second == await served.get()
    assert second.items[0].reservation.state == cart_pb2.Reservation.STATE_RESERVED
    await served.delete()
    (last,) = await rest(call)
    assert (last.uid, last.state) == (first.uid, STATES.STATE_DELETED)
    assert first.revision < second.revision < last.revision
    assert await rest(served.watch()) == [last]


async def test_a_watcher_of_an_ended_cart_never_sees_the_next_cart_of_the_name(served: Served) -> None:
    await served.store.mutate(add())
    call = served.watch()
    first = await next_cart(call)
    # In one go, so that the watcher may miss the end.
    await asyncio.gather(served.delete(), served.store.mutate(add(quantity=7)))
    assert {cart.uid for cart in await rest(call)} <= {first.uid}
    assert (await next_cart(served.watch())).total_quantity == 7


async def test_a_client_that_was_away_resumes_by_watching_again_and_leaves_nothing_behind(served: Served) -> None:
    await served.store.mutate(add())
    for quantity in (1, 2):
        calls = [served.watch() for _ in range(5)]
        carts = [await next_cart(call) for call in calls]
        assert {cart.total_quantity for cart in carts} == {quantity}
        for call in calls:
            call.cancel()
        await until(served.is_idle)
        await served.store.mutate(add())


async def test_the_end_of_a_hold_is_sent_although_nothing_is_written(served: Served, engine: Engine) -> None:
    await served.store.mutate(add())
    await served.store.record(answered(await claim_one(served.store)))
    lifetimes = growing(0.5)
    while True:
        end = app.clock() + int(next(lifetimes) * SECOND)
        await overwrite(engine, schema.reservations, expire_time=end + HOLD_MARGIN_US, due_time=end + HOUR)
        call = served.watch()
        if (await next_cart(call)).items[0].reservation.state == cart_pb2.Reservation.STATE_RESERVED:
            break
        # The hold had ended before the watch began.
        call.cancel()
    assert (await next_cart(call)).items[0].reservation.state == cart_pb2.Reservation.STATE_EXPIRED


async def test_a_state_that_looks_the_same_is_not_sent_again_and_a_quiet_stream_has_heartbeats(
    served: Served, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "HEARTBEAT_SECONDS", 0.05)
    await served.store.mutate(add())
    call = served.watch()
    first = await next_cart(call)
    # No message shows it, but the row differs.
    await overwrite(engine, schema.reservations, lease_epoch=7)
    served.store.watches._on_change([KEY])
    replies = [await call.read() for _ in range(2)]
    assert [reply.WhichOneof("content") for reply in replies] == ["heartbeat"] * 2
    assert replies[0].heartbeat.time.ToMicroseconds() == pytest.approx(app.clock(), abs=10 * SECOND)
    await served.store.mutate(add())
    while (reply := await call.read()).WhichOneof("content") == "heartbeat":
        pass
    assert reply.cart.revision > first.revision


def request() -> bytes:
    """The frames of a WatchCart call."""
    body = cart_service_pb2.WatchCartRequest(name=NAME).SerializeToString()
    headers = frame(HEADERS, END_HEADERS, 1, call_of(PATH))
    return headers + frame(DATA, END_STREAM, 1, message(len(body)) + body)


async def test_a_watcher_that_does_not_read_keeps_one_state_delays_nobody_and_does_not_delay_a_stop(
    served: Served,
) -> None:
    await served.store.mutate(add())
    deaf = PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW_SIZE, 0)) + request()
    async with wired(f"127.0.0.1:{served.server.port}", deaf) as wire:
        await until(lambda: len(served.server._streams._tasks) == 1)
        call = served.watch()
        await next_cart(call)
        for quantity in range(2, 30):
            await served.store.mutate(add())
            while (await next_cart(call)).total_quantity != quantity:
                pass
        assert wire.seen[DATA] == 0
        (subscription,) = served.store.watches._subscriptions.values()
        assert len(subscription.watchers) == 2
        loop = asyncio.get_running_loop()
        began = loop.time()
        _, refusal = await asyncio.gather(served.server.stop(GRACE), refused(call))
        assert loop.time() - began < GRACE / 4
        assert (refusal.code, refusal.info.reason) == ("UNAVAILABLE", "SHUTTING_DOWN")
    await until(served.is_idle)


async def test_a_slow_reader_gets_states_in_order_and_the_last_one(served: Served) -> None:
    await served.store.mutate(add())
    call = served.watch()
    for _ in range(50):
        await served.store.mutate(add())
    seen = [(await next_cart(call)).revision]
    last = await served.get()
    while seen[-1] != last.revision:
        seen.append((await next_cart(call)).revision)
    assert seen == sorted(set(seen))


async def test_the_streams_of_a_connection_are_limited_and_leave_room_for_its_other_calls(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    await served.store.mutate(add())
    calls = [served.watch() for _ in range(services_module.MAX_STREAMS_PER_CONNECTION)]
    for call in calls:
        await next_cart(call)
    refusal = await refused(served.watch())
    assert (refusal.code, refusal.info.reason) == ("RESOURCE_EXHAUSTED", "TOO_MANY_STREAMS")
    carts = await asyncio.gather(*(served.get() for _ in range(60)))
    assert len(carts) == 60
    calls[0].cancel()
    await until(lambda: len(served.server._streams._tasks) == len(calls) - 1)
    assert (await next_cart(served.watch())).total_quantity == 1


class WithoutHints(Wrapped):
    """The database of a process whose hints are lost."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.hints = None

    async def committed(self) -> None:
        pass


@asynccontextmanager
async def replica(url: str, wrap: Callable[[Engine], Any] = lambda engine: engine) -> AsyncIterator[Store]:
    engine = open_database(url)
    store = Store(wrap(engine), app.new_id, queue_size=1000)
    await store.start()
    yield store
    await store.close()
    await engine.close()


async def listeners(store: Store, what: str) -> Sequence[Any]:
    """The column `what` of the sessions that listen."""
    sessions = "pg_stat_activity WHERE datname = current_database() AND application_name = 'cart-grpc hints'"
    statement = text(f"SELECT {what} FROM {sessions}")  # noqa: S608
    return await store._engine.query(lambda connection: connection.execute(statement).scalars().all())


async def test_another_replicas_changes_arrive_by_hints_and_without_them(postgres: Any) -> None:
    url = postgres.create_database("sharded_of_watchers", template=SHARDED)
    async with AsyncExitStack() as stack:
        store, other = [await stack.enter_async_context(replica(url)) for _ in range(2)]
        silent = await stack.enter_async_context(replica(url, WithoutHints))
        served = await stack.enter_async_context(serving(store))
        await other.mutate(add())
        assert await listeners(store, "pid") == []
        call = served.watch()
        await next_cart(call)
        await until_listening(store)
        # Only a hint can bring it.
        store.watches._check_seconds = 1_000.0
        store.watches._check_now.set()
        await other.mutate(add())
        assert (await next_cart(call)).total_quantity == 2
        # Both may listen.
        with other.watches.watch(KEY, lambda found: found.version) as states:
            await anext(states)
            await until_listening(store, count=2)
            await other.mutate(add())
            assert (await next_cart(call)).total_quantity == 3
        # A session that listens again finds the changes that it missed.
        before = await listeners(store, "pid")
        await listeners(store, "pg_terminate_backend(pid)")
        await silent.mutate(add())
        assert (await next_cart(call)).total_quantity == 4
        await until_listening(store, but=before)
        await other.mutate(add())
        assert (await next_cart(call)).total_quantity == 5
        # Only a check can bring it.
        store.watches._check_seconds = 0.05
        store.watches._check_now.set()
        await silent.mutate(add())
        assert (await next_cart(call)).total_quantity == 6
        call.cancel()
        await until(served.is_idle)


async def until_listening(store: Store, count: int = 1, but: Sequence[Any] = ()) -> None:
    async with asyncio.timeout(20):
        while len(set(await listeners(store, "pid")) - set(but)) < count:
            await asyncio.sleep(0.01)
