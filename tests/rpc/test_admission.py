"""More calls than a server can run: some queue, some are rejected at once, and no user takes another user's slots."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from cartgrpc.v1 import cart_pb2, cart_service_pb2, cart_service_pb2_grpc
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cart_grpc import app, parts
from cart_grpc.carts.refusals import CartNotFound, Overloaded, TooManyCalls
from cart_grpc.rpc.admission import Admission
from cart_grpc.rpc.methods import CART_SERVICE
from cart_grpc.rpc.server import OPTIONS, Server
from cart_grpc.rpc.services import cart_service
from cart_grpc.settings import Settings
from tests.deadlines import growing
from tests.rpc.conftest import quiet_settings
from tests.rpc.refusal import call, refuse, to_refusal
from tests.rpc.serving import admitting, serving
from tests.service.conftest import Replica, running_replica
from tests.waiting import until

OTHERS = cart_service_pb2.GetCartRequest(name="users/bob/carts/default")
MINE = cart_service_pb2.GetCartRequest(name="users/alice/carts/default")


class Busy:
    """A servicer whose calls for alice end when the test releases `finish`; it records the names, in order."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.finish = asyncio.Semaphore(0)

    async def __call__(self, request: Any, _context: Any) -> Any:
        self.started.append(request.name)
        if request.name.startswith("users/alice/"):
            await self.finish.acquire()
        return cart_service_pb2.GetCartResponse()


@asynccontextmanager
async def busy(
    admission: Admission, calls: int, options: Sequence[tuple[str, int]] = ()
) -> AsyncIterator[tuple[Replica, Busy, list["asyncio.Task[Any]"]]]:
    """A server with so many of alice's `calls` on one connection: it runs those that it admits."""
    servicer = Busy()
    async with serving(servicer, options=options, admission=admission) as server:
        hers = [asyncio.ensure_future(ask_for(server, f"users/alice/carts/{number}")) for number in range(calls)]
        await until(lambda: servicer.started)
        yield server, servicer, hers
        for _ in hers:
            servicer.finish.release()
        await asyncio.gather(*hers, return_exceptions=True)


async def ask_for(server: Replica, name: str) -> Any:
    return await call(server, "GetCart", cart_service_pb2.GetCartRequest(name=name))


async def test_a_call_beyond_the_limit_is_rejected_with_a_retry_delay() -> None:
    async with busy(admitting(max_calls=1), 1) as (server, servicer, _):
        refusal = await refuse(server, "GetCart", OTHERS)
        assert servicer.started == ["users/alice/carts/0"]
    assert (refusal.code, refusal.info.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
    assert refusal.message == Overloaded().message
    assert refusal.detail(error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() == 500


async def test_a_full_server_rejects_a_call_before_its_request_arrives() -> None:
    async with serving(Busy(), admission=admitting(max_calls=0)) as server:
        silent: Any = server.channel.stream_unary(f"/{CART_SERVICE}/GetCart")(timeout=10)
        assert await silent.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert to_refusal(await refused(silent)).info.reason == "OVERLOADED"


async def refused(pending: Awaitable[Any]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await pending
    return caught.value


async def test_a_call_whose_request_never_arrives_takes_no_slot() -> None:
    async with serving(Busy(), admission=admitting(max_calls=1)) as server:
        silent: list[Any] = [server.channel.stream_unary(f"/{CART_SERVICE}/GetCart")() for _ in range(5)]
        for one in silent:
            await one.wait_for_connection()
        await call(server, "GetCart", OTHERS)
        for one in silent:
            one.cancel()


async def end_well(server: Replica, pending: "asyncio.Task[Any]", servicer: "Ending") -> None:
    servicer.go_on.set()
    await pending


async def end_refused(server: Replica, pending: "asyncio.Task[Any]", servicer: "Ending") -> None:
    servicer.error = CartNotFound("users/bob/carts/default")
    servicer.go_on.set()
    assert (await refused(pending)).code() == grpc.StatusCode.NOT_FOUND


async def end_in_a_bug(server: Replica, pending: "asyncio.Task[Any]", servicer: "Ending") -> None:
    servicer.error = ZeroDivisionError("bug")
    servicer.go_on.set()
    assert (await refused(pending)).code() == grpc.StatusCode.INTERNAL


async def end_with_a_stray_cancellation(server: Replica, pending: "asyncio.Task[Any]", servicer: "Ending") -> None:
    servicer.error = asyncio.CancelledError()
    servicer.go_on.set()
    assert (await refused(pending)).code() == grpc.StatusCode.INTERNAL


async def end_by_the_servers_timeout(server: Replica, pending: "asyncio.Task[Any]", servicer: "Ending") -> None:
    assert to_refusal(await refused(pending)).info.reason == "CALL_TIMEOUT"


async def end_by_the_caller(server: Replica, pending: "asyncio.Task[Any]", servicer: "Ending") -> None:
    pending.cancel()
    await asyncio.gather(pending, return_exceptions=True)


class Ending:
    """A servicer that ends its first call as the test decides, and answers the others."""

    def __init__(self) -> None:
        self.started = self.ended = False
        self.go_on = asyncio.Event()
        self.error: BaseException | None = None

    async def __call__(self, _request: Any, _context: Any) -> Any:
        if not self.started:
            self.started = True
            try:
                await self.go_on.wait()
            finally:
                self.ended = True
            if self.error:
                raise self.error
        return cart_service_pb2.GetCartResponse()


@pytest.mark.parametrize(
    "end",
    [
        end_well,
        end_refused,
        end_in_a_bug,
        end_with_a_stray_cancellation,
        end_by_the_servers_timeout,
        end_by_the_caller,
    ],
    ids=lambda end: end.__name__,
)
async def test_a_slot_is_freed_however_the_call_ends(end: Callable[..., Awaitable[None]]) -> None:
    for timeout in growing(0.2) if end is end_by_the_servers_timeout else (30.0,):
        servicer, admission = Ending(), admitting(max_calls=1)
        async with serving(servicer, timeout, admission=admission) as server:
            pending: Any = server.stub.GetCart(OTHERS)
            asked = asyncio.ensure_future(pending)
            await until(lambda: servicer.started or asked.done())  # noqa: B023 - it runs before the next round
            if end is not end_by_the_servers_timeout:
                assert (await refuse(server, "GetCart", OTHERS)).info.reason == "OVERLOADED"
            await end(server, asked, servicer)
            if servicer.started:
                await until(lambda: servicer.ended and not admission.is_full)  # noqa: B023
                await call(server, "GetCart", OTHERS)
                return


async def test_malformed_requests_take_no_slot() -> None:
    async with serving(Ending(), admission=admitting(max_calls=1)) as server:
        for _ in range(3):
            garbage: Any = server.channel.unary_unary(f"/{CART_SERVICE}/GetCart")
            error = await refused(garbage(b"\xff", timeout=10))
            assert error.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_user_who_floods_queues_while_other_users_are_served() -> None:
    async with busy(admitting(max_calls_per_user=2), 10) as (server, servicer, hers):
        await until(lambda: len(servicer.started) == 2)
        for _ in range(3):
            await call(server, "GetCart", OTHERS)
        assert len(servicer.started) == 5
        for _ in hers:
            servicer.finish.release()
        await asyncio.gather(*hers)
        hers_started = [name for name in servicer.started if "alice" in name]
        assert sorted(hers_started) == [f"users/alice/carts/{number}" for number in range(10)]


async def test_queued_calls_get_slots_in_order() -> None:
    admission, order = admitting(max_calls_per_user=1), []

    async def work(number: int) -> None:
        await admission.take_slot("alice", 0)
        order.append(number)
        await asyncio.sleep(0)
        admission.free_slot()

    await asyncio.gather(*map(work, range(5)))
    assert order == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("reply_bytes", "expected"), [(0, 8), (30_000, 8), (70_000, 2), (260_000, 1), (10**7, 1)])
async def test_a_user_whose_replies_are_long_has_fewer_calls_running(reply_bytes: int, expected: int) -> None:
    admission = admitting(max_calls_per_user=8)
    await admission.take_slot("alice", 0)
    admission.note_reply(reply_bytes)
    started = [asyncio.create_task(admission.take_slot("alice", 0)) for _ in range(20)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert admission.running == expected
    admission.note_reply(0)
    admission.free_slot()
    await asyncio.sleep(0)
    assert admission.running == 8
    for task in started:
        task.cancel()
    await asyncio.gather(*started, return_exceptions=True)


async def test_a_long_request_that_waits_counts_as_several() -> None:
    admission = admitting(max_calls_per_user=1, max_waiting_per_user=12)
    await admission.take_slot("alice", 0)
    long = asyncio.create_task(admission.take_slot("alice", 330_000))
    await asyncio.sleep(0)
    assert admission.waiting == 11
    with pytest.raises(TooManyCalls):
        await admission.take_slot("alice", 40_000)
    short = asyncio.create_task(admission.take_slot("alice", 100))
    await asyncio.sleep(0)
    assert admission.waiting == 12
    admission.free_slot()
    await long
    assert admission.waiting == 1
    short.cancel()
    await asyncio.gather(short, return_exceptions=True)
    assert admission.waiting == 0


async def test_queued_calls_do_not_fill_the_server() -> None:
    async with busy(admitting(max_calls=2, max_calls_per_user=1), 5) as (server, _, __):
        await call(server, "GetCart", OTHERS)


async def test_a_user_whose_queue_is_full_is_rejected_while_other_users_are_served() -> None:
    async with busy(admitting(max_calls_per_user=2, max_waiting_per_user=3), 5) as (server, _, __):
        refusal = await eventually_refused(server)
        await call(server, "GetCart", OTHERS)
    assert (refusal.code, refusal.info.reason) == ("RESOURCE_EXHAUSTED", "TOO_MANY_CALLS")
    assert (refusal.message, dict(refusal.info.metadata)) == (
        TooManyCalls("user", 5).message,
        {"holder": "user", "limit": "5"},
    )
    assert refusal.detail(error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() == 500


async def test_a_user_who_floods_a_connection_leaves_room_for_other_users_on_it() -> None:
    async with busy(parts.admission(Settings()), 150, OPTIONS) as (server, _, __):
        # Before the first of her calls times out.
        await server.stub.GetCart(OTHERS, timeout=10)


async def eventually_refused(server: Replica) -> Any:
    """The refusal of alice's next call, once her earlier ones have arrived."""
    for _ in range(100):
        try:
            await server.stub.GetCart(MINE, timeout=0.1)
        except grpc.aio.AioRpcError as error:
            if error.code() != grpc.StatusCode.DEADLINE_EXCEEDED:
                return to_refusal(error)
    raise AssertionError("the call is never refused")


async def test_without_room_to_queue_a_call_is_rejected() -> None:
    async with busy(admitting(max_calls_per_user=1, max_waiting=0), 1) as (server, _, __):
        assert (await refuse(server, "GetCart", MINE)).info.reason == "OVERLOADED"
        await call(server, "GetCart", OTHERS)


async def test_a_queued_call_that_is_cancelled_blocks_no_other_call() -> None:
    admission = admitting(max_calls_per_user=1)
    async with busy(admission, 5) as (_, servicer, hers):
        await until(lambda: admission.waiting == 4)
        waiting = [one for number, one in enumerate(hers) if f"users/alice/carts/{number}" not in servicer.started]
        assert len(waiting) == 4
        waiting[0].cancel()
        waiting[2].cancel()
        await until(lambda: admission.waiting == 2)
        for _ in range(3):
            servicer.finish.release()
        answered = await asyncio.wait_for(asyncio.gather(*hers, return_exceptions=True), 10)
    assert sum(isinstance(one, cart_service_pb2.GetCartResponse) for one in answered) == 3


async def test_a_queued_call_ends_at_its_timeout() -> None:
    servicer, admission = Busy(), admitting(max_calls_per_user=1)
    await admission.take_slot("alice", 0)
    async with serving(servicer, 0.2, admission=admission) as server:
        refusals = await asyncio.gather(*(refuse(server, "GetCart", MINE) for _ in range(3)))
        assert {refusal.info.reason for refusal in refusals} == {"CALL_TIMEOUT"}
        assert servicer.started == []


async def test_health_and_reflection_answer_while_the_server_is_full(tmp_path: Path) -> None:
    settings = quiet_settings(f"sqlite:///{tmp_path}/cart.db")
    async with app.running_store(settings) as store:
        server = Server(cart_service(store, parts.limits(settings), admitting(max_calls=0)), 10)
        await server.start("127.0.0.1:0")
        await server.open()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
                replica = Replica(cart_service_pb2_grpc.CartServiceStub(channel), channel, server.port)
                assert (await refuse(replica, "GetCart", OTHERS)).info.reason == "OVERLOADED"
                checks: Any = health_pb2_grpc.HealthStub(channel)
                health = await checks.Check(health_pb2.HealthCheckRequest(service=CART_SERVICE), timeout=10)
                assert health.status == health_pb2.HealthCheckResponse.SERVING
        finally:
            await server.stop(0)


async def test_a_call_in_max_wait_leaves_its_slot_to_others(tmp_path: Path) -> None:
    async with patient(tmp_path, max_calls=2, max_calls_per_user=1) as (server, waiting):
        seen = await server.eventually(lambda cart: len(cart.items) == 1 + len(waiting))
        assert seen.reconciling
        assert not any(one.done() for one in waiting)


async def test_without_room_to_park_a_call_is_answered_with_the_current_state(tmp_path: Path) -> None:
    async with patient(tmp_path, max_waiting_calls=2) as (_, waiting):
        answered, still = await asyncio.wait(waiting, timeout=10, return_when=asyncio.FIRST_COMPLETED)
        await until(lambda: sum(one.done() for one in waiting) == 3)
        assert len(still) + len(answered) == 5
        reservations = [one.result().reservation for one in waiting if one.done()]
        assert {one.state for one in reservations} == {cart_pb2.Reservation.STATE_PENDING}


@asynccontextmanager
async def patient(tmp_path: Path, **limits: int) -> AsyncIterator[tuple[Replica, list["asyncio.Task[Any]"]]]:
    """A server without a reconciler, and five calls that wait for reservations."""
    settings: Settings = quiet_settings(f"sqlite:///{tmp_path}/cart.db").with_changes(**limits)
    async with running_replica(settings, reconcile=False) as replica:
        await replica.add()
        waiting = [asyncio.ensure_future(add_and_wait(replica, f"sku-{number}")) for number in range(5)]
        yield replica, waiting
        for one in waiting:
            one.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def add_and_wait(replica: Replica, sku: str) -> cart_pb2.Item:
    request = cart_service_pb2.AddItemRequest(parent="users/alice/carts/default", item=cart_pb2.Item(sku=sku))
    request.max_wait.seconds = 30
    return (await replica.stub.AddItem(request, timeout=40)).item


@pytest.mark.parametrize("seed", range(20))
async def test_random_calls_never_exceed_a_limit_and_leave_nothing_behind(seed: int) -> None:
    rng = random.Random(seed)
    admission = admitting(max_calls=4, max_calls_per_user=2, max_waiting=8, max_waiting_per_user=4)
    running: dict[object, str] = {}
    outcomes: list[str] = []

    async def work(user: str) -> None:
        call = object()
        try:
            await admission.take_slot(user, 0)
            try:
                running[call] = user
                assert list(running.values()).count(user) <= 2
                assert len(running) <= 4
                for _ in range(rng.randrange(3)):
                    await asyncio.sleep(0)
                del running[call]
                if rng.random() < 0.3 and admission.park():
                    await asyncio.sleep(0)
            finally:
                running.pop(call, None)
                admission.free_slot()
            outcomes.append("done")
        except (Overloaded, TooManyCalls) as refusal:
            outcomes.append(refusal.reason)

    tasks: list[asyncio.Task[None]] = []
    for _ in range(600):
        tasks.append(asyncio.create_task(work(rng.choice("aaaabcde"))))
        if rng.random() < 0.3:
            rng.choice(tasks[-10:]).cancel()
        if rng.random() < 0.5:
            await asyncio.sleep(0)
    ended = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
    assert not [one for one in ended if isinstance(one, Exception)]
    assert set(outcomes) == {"done", "OVERLOADED", "TOO_MANY_CALLS"}
    assert (admission.running, admission.waiting) == (0, 0)
    assert not {*admission._users, *admission._running, *admission._parked}
