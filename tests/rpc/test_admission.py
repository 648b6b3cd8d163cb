"""More calls than a server can do: some wait, some are refused at once, and none takes what belongs to another."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from cartgrpc.v1 import cart_pb2, cart_service_pb2, cart_service_pb2_grpc
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cart_grpc import app
from cart_grpc.carts.refusals import CartNotFound, Overloaded, TooManyCalls
from cart_grpc.rpc.admission import Admission
from cart_grpc.rpc.guard import _name_of
from cart_grpc.rpc.server import SERVICE, cart_server
from cart_grpc.settings import Settings
from tests.rpc.conftest import quiet_settings
from tests.rpc.guarded import guarded
from tests.rpc.refusal import call, refuse, to_refusal
from tests.rpc.right import SERVICE as DESCRIPTOR
from tests.rpc.right import right
from tests.service.conftest import Replica, running_replica

OTHERS = cart_service_pb2.GetCartRequest(name="users/bob/carts/default")
MINE = cart_service_pb2.GetCartRequest(name="users/alice/carts/default")


def admitting(**bounds: int) -> Admission:
    """An admission with these bounds and no others to speak of."""
    unbounded = {"calls": 1_000, "calls_per_user": 1_000, "waiting": 1_000, "waiting_per_user": 1_000}
    return Admission(**(unbounded | bounds))


async def until(holds: Callable[[], object]) -> None:
    """Return once it holds; fails after ten seconds."""
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.002)


class Busy:
    """A servicer whose work for alice ends when a test says so; it notes for whom it works, in order."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.finish = asyncio.Semaphore(0)

    async def __call__(self, request: Any, _context: Any) -> Any:
        self.begun.append(request.name)
        if request.name.startswith("users/alice/"):
            await self.finish.acquire()
        return cart_service_pb2.GetCartResponse()


@asynccontextmanager
async def busy(admission: Admission, calls: int) -> AsyncIterator[tuple[Replica, Busy, list["asyncio.Task[Any]"]]]:
    """A server that is at work for alice, with as many of her `calls` as it lets in at once."""
    behaviour = Busy()
    async with guarded(behaviour, admission=admission) as server:
        hers = [asyncio.ensure_future(ask_for(server, f"users/alice/carts/{number}")) for number in range(calls)]
        await until(lambda: behaviour.begun)
        yield server, behaviour, hers
        for _ in hers:
            behaviour.finish.release()
        await asyncio.gather(*hers, return_exceptions=True)


async def ask_for(server: Replica, name: str) -> Any:
    return await call(server, "GetCart", cart_service_pb2.GetCartRequest(name=name))


async def test_one_call_more_than_fit_is_refused_and_told_when_to_come_again() -> None:
    async with busy(admitting(calls=1), 1) as (server, behaviour, _):
        refusal = await refuse(server, "GetCart", OTHERS)
        assert behaviour.begun == ["users/alice/carts/0"]
    assert (refusal.code, refusal.info.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
    assert refusal.message == Overloaded().message
    assert refusal.detail(error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() == 500


async def test_a_full_server_refuses_before_it_has_received_the_request() -> None:
    async with guarded(Busy(), admission=admitting(calls=0)) as server:
        silent: Any = server.channel.stream_unary(f"/{SERVICE}/GetCart")(timeout=10)
        assert await silent.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert to_refusal(await refused(silent)).info.reason == "OVERLOADED"


async def refused(pending: Awaitable[Any]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await pending
    return caught.value


async def test_a_call_whose_request_never_comes_takes_nobodys_place() -> None:
    async with guarded(Busy(), admission=admitting(calls=1)) as server:
        silent: list[Any] = [server.channel.stream_unary(f"/{SERVICE}/GetCart")() for _ in range(5)]
        for one in silent:
            await one.wait_for_connection()
        await call(server, "GetCart", OTHERS)
        for one in silent:
            one.cancel()


async def end_well(server: Replica, pending: "asyncio.Task[Any]", behaviour: "Ending") -> None:
    behaviour.go_on.set()
    await pending


async def end_refused(server: Replica, pending: "asyncio.Task[Any]", behaviour: "Ending") -> None:
    behaviour.error = CartNotFound("users/bob/carts/default")
    behaviour.go_on.set()
    assert (await refused(pending)).code() == grpc.StatusCode.NOT_FOUND


async def end_in_a_bug(server: Replica, pending: "asyncio.Task[Any]", behaviour: "Ending") -> None:
    behaviour.error = ZeroDivisionError("bug")
    behaviour.go_on.set()
    assert (await refused(pending)).code() == grpc.StatusCode.INTERNAL


async def end_with_a_stray_cancellation(server: Replica, pending: "asyncio.Task[Any]", behaviour: "Ending") -> None:
    behaviour.error = asyncio.CancelledError()
    behaviour.go_on.set()
    assert (await refused(pending)).code() == grpc.StatusCode.INTERNAL


async def end_by_the_servers_timeout(server: Replica, pending: "asyncio.Task[Any]", behaviour: "Ending") -> None:
    assert to_refusal(await refused(pending)).info.reason == "CALL_TIMEOUT"


async def end_by_the_caller(server: Replica, pending: "asyncio.Task[Any]", behaviour: "Ending") -> None:
    pending.cancel()
    await asyncio.gather(pending, return_exceptions=True)


class Ending:
    """A servicer that ends the first call as a test says, and answers the others."""

    def __init__(self) -> None:
        self.begun = self.ended = False
        self.go_on = asyncio.Event()
        self.error: BaseException | None = None

    async def __call__(self, _request: Any, _context: Any) -> Any:
        if not self.begun:
            self.begun = True
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
async def test_a_place_is_given_back_however_the_call_ends(end: Callable[..., Awaitable[None]]) -> None:
    behaviour, admission = Ending(), admitting(calls=1)
    timeout = 0.2 if end is end_by_the_servers_timeout else 30
    async with guarded(behaviour, timeout, admission) as server:
        pending: Any = server.stub.GetCart(OTHERS)
        asked = asyncio.ensure_future(pending)
        await until(lambda: behaviour.begun)
        if end is not end_by_the_servers_timeout:
            assert (await refuse(server, "GetCart", OTHERS)).info.reason == "OVERLOADED"
        await end(server, asked, behaviour)
        await until(lambda: behaviour.ended and not admission.is_full)
        await call(server, "GetCart", OTHERS)


async def test_bytes_that_are_no_request_take_nobodys_place() -> None:
    async with guarded(Ending(), admission=admitting(calls=1)) as server:
        for _ in range(3):
            garbage: Any = server.channel.unary_unary(f"/{SERVICE}/GetCart")
            error = await refused(garbage(b"\xff", timeout=10))
            assert error.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_who_floods_waits_for_his_turn_while_others_are_served() -> None:
    async with busy(admitting(calls_per_user=2), 10) as (server, behaviour, hers):
        await until(lambda: len(behaviour.begun) == 2)
        for _ in range(3):
            await call(server, "GetCart", OTHERS)
        assert len(behaviour.begun) == 5
        for _ in hers:
            behaviour.finish.release()
        await asyncio.gather(*hers)
        hers_begun = [name for name in behaviour.begun if "alice" in name]
        assert sorted(hers_begun) == [f"users/alice/carts/{number}" for number in range(10)]


async def test_turns_come_in_the_order_of_asking() -> None:
    admission, order = admitting(calls_per_user=1), []

    async def work(number: int) -> None:
        await admission.enter("alice")
        order.append(number)
        await asyncio.sleep(0)
        admission.leave()

    await asyncio.gather(*map(work, range(5)))
    assert order == [0, 1, 2, 3, 4]


async def test_who_waits_for_his_turn_does_not_fill_the_server() -> None:
    async with busy(admitting(calls=2, calls_per_user=1), 5) as (server, _, __):
        await call(server, "GetCart", OTHERS)


async def test_who_floods_beyond_what_may_wait_is_refused_while_others_are_served() -> None:
    async with busy(admitting(calls_per_user=2, waiting_per_user=3), 5) as (server, _, __):
        refusal = await eventually_refused(server)
        await call(server, "GetCart", OTHERS)
    assert (refusal.code, refusal.info.reason) == ("RESOURCE_EXHAUSTED", "TOO_MANY_CALLS")
    assert (refusal.message, dict(refusal.info.metadata)) == (TooManyCalls(5).message, {"limit": "5"})
    assert refusal.detail(error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() == 500


async def eventually_refused(server: Replica) -> Any:
    """How alice's next call is refused, once those before it have arrived."""
    for _ in range(100):
        try:
            await server.stub.GetCart(MINE, timeout=0.1)
        except grpc.aio.AioRpcError as error:
            if error.code() != grpc.StatusCode.DEADLINE_EXCEEDED:
                return to_refusal(error)
    raise AssertionError("it is never refused")


async def test_where_no_more_may_wait_whose_turn_has_not_come_is_refused() -> None:
    async with busy(admitting(calls_per_user=1, waiting=0), 1) as (server, _, __):
        assert (await refuse(server, "GetCart", MINE)).info.reason == "OVERLOADED"
        await call(server, "GetCart", OTHERS)


async def test_a_caller_who_gives_up_waiting_for_his_turn_stops_nobody() -> None:
    admission = admitting(calls_per_user=1)
    async with busy(admission, 5) as (_, behaviour, hers):
        await until(lambda: admission.waiting == 4)
        waiting = [one for number, one in enumerate(hers) if f"users/alice/carts/{number}" not in behaviour.begun]
        assert len(waiting) == 4
        waiting[0].cancel()
        waiting[2].cancel()
        await until(lambda: admission.waiting == 2)
        for _ in range(3):
            behaviour.finish.release()
        answered = await asyncio.wait_for(asyncio.gather(*hers, return_exceptions=True), 10)
    assert sum(isinstance(one, cart_service_pb2.GetCartResponse) for one in answered) == 3


async def test_waiting_for_a_turn_ends_with_the_calls_own_time() -> None:
    behaviour, admission = Busy(), admitting(calls_per_user=1)
    await admission.enter("alice")
    async with guarded(behaviour, 0.2, admission) as server:
        refusals = await asyncio.gather(*(refuse(server, "GetCart", MINE) for _ in range(3)))
        assert {refusal.info.reason for refusal in refusals} == {"CALL_TIMEOUT"}
        assert behaviour.begun == []


@pytest.mark.parametrize("method", [method.name for method in DESCRIPTOR.methods])
def test_whose_call_it_is_stands_in_each_request(method: str) -> None:
    request = right(method)
    assert _name_of(request.DESCRIPTOR)(request).startswith("users/alice")


async def test_health_and_reflection_answer_while_the_server_is_full(tmp_path: Path) -> None:
    settings = quiet_settings(f"sqlite:///{tmp_path}/cart.db")
    async with app.running_store(settings) as store:
        server = cart_server(store, app._limits(settings), 10, admitting(calls=0))
        await server.start("127.0.0.1:0")
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
                replica = Replica(cart_service_pb2_grpc.CartServiceStub(channel), channel, server.port)
                assert (await refuse(replica, "GetCart", OTHERS)).info.reason == "OVERLOADED"
                checks: Any = health_pb2_grpc.HealthStub(channel)
                health = await checks.Check(health_pb2.HealthCheckRequest(service=SERVICE), timeout=10)
                assert health.status == health_pb2.HealthCheckResponse.SERVING
        finally:
            await server.stop(0)


async def test_who_waits_for_a_reservation_leaves_his_place_to_others(tmp_path: Path) -> None:
    async with patient(tmp_path, max_calls=2, max_calls_per_user=1) as (server, waiting):
        seen = await server.eventually(lambda cart: len(cart.items) == 1 + len(waiting))
        assert seen.reconciling
        assert not any(one.done() for one in waiting)


async def test_without_room_to_wait_a_call_is_answered_as_it_is(tmp_path: Path) -> None:
    async with patient(tmp_path, max_waiting_calls=2) as (_, waiting):
        answered, still = await asyncio.wait(waiting, timeout=10, return_when=asyncio.FIRST_COMPLETED)
        await until(lambda: sum(one.done() for one in waiting) == 3)
        assert len(still) + len(answered) == 5
        reservations = [one.result().reservation for one in waiting if one.done()]
        assert {one.state for one in reservations} == {cart_pb2.Reservation.STATE_PENDING}


@asynccontextmanager
async def patient(tmp_path: Path, **bounds: int) -> AsyncIterator[tuple[Replica, list["asyncio.Task[Any]"]]]:
    """A server, and five calls that wait for reservations that nobody makes."""
    settings: Settings = quiet_settings(f"sqlite:///{tmp_path}/cart.db").with_changes(**bounds)
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
async def test_whatever_calls_do_no_bound_is_passed_and_nothing_is_left_behind(seed: int) -> None:
    rng = random.Random(seed)
    admission = admitting(calls=4, calls_per_user=2, waiting=8, waiting_per_user=4)
    working: dict[object, str] = {}
    outcomes: list[str] = []

    async def work(user: str) -> None:
        call = object()
        try:
            await admission.enter(user)
            try:
                working[call] = user
                assert list(working.values()).count(user) <= 2
                assert len(working) <= 4
                for _ in range(rng.randrange(3)):
                    await asyncio.sleep(0)
                del working[call]
                if rng.random() < 0.3 and admission.rest():
                    await asyncio.sleep(0)
            finally:
                working.pop(call, None)
                admission.leave()
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
    assert (admission.working, admission.waiting) == (0, 0)
    assert not {*admission._users, *admission._working, *admission._resting}
