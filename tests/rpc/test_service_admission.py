"""More calls and streams of one service than it may have: other services and users are served as before."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from cartgrpc.v1 import cart_service_pb2

from cart_grpc.authentication.caller import CARTS_ACT_AS, CARTS_READ
from cart_grpc.authentication.services import Services
from cart_grpc.carts.refusals import Overloaded, TooManyCalls
from cart_grpc.rpc.access import AccessByCertificate, AccessByToken
from cart_grpc.rpc.methods import CART_SERVICE, Method
from tests.authentication.issuer import make_token
from tests.certificates import Authority
from tests.rpc.protected import READER, SERVICES, WEB, Identity, general_name, known_tokens, secured
from tests.rpc.refusal import to_refusal
from tests.rpc.right import right
from tests.rpc.serving import admitting, streams_with
from tests.waiting import until

ROWS = (Method("GetCart", ("name",)), Method("WatchCart", ("name",), streams=True))


@dataclass(frozen=True)
class Front:
    """A server whose GetCart and WatchCart end when the test sets `finish`, and callers of it."""

    started: list[str]
    finish: asyncio.Event
    web: Identity
    reader: Identity
    alice: Identity
    gateway: Identity

    async def begin(self, identity: Identity, user: str, method: str = "GetCart") -> Any:
        """Start a call for a user, and wait until it runs."""
        count = len(self.started)
        call = asyncio.ensure_future(identity.call(method, right(method, f"users/{user}")))
        await until(lambda: len(self.started) > count or call.done())
        return call

    async def is_served(self, identity: Identity, user: str, method: str = "GetCart") -> bool:
        """Whether a call runs now."""
        return not (await self.begin(identity, user, method)).done()


@asynccontextmanager
async def front(folder: Path, **guards: Any) -> AsyncIterator[Front]:
    """A server with a port for certificates and a port for tokens, which share `guards`."""
    started: list[str] = []
    finish = asyncio.Event()

    async def get(request: Any, _context: Any) -> Any:
        started.append(request.name)
        await finish.wait()
        return cart_service_pb2.GetCartResponse()

    async def watch(request: Any, _context: Any) -> AsyncIterator[Any]:
        started.append(request.name)
        yield cart_service_pb2.WatchCartResponse()
        await finish.wait()

    def add(pipeline: Any) -> None:
        decode, watched = cart_service_pb2.GetCartRequest.FromString, cart_service_pb2.WatchCartRequest.FromString
        methods: Any = {
            "GetCart": grpc.unary_unary_rpc_method_handler(get, decode),
            "WatchCart": grpc.unary_stream_rpc_method_handler(watch, watched),
        }
        pipeline.add_registered_method_handlers(CART_SERVICE, methods)

    authority = Authority()
    async with AsyncExitStack() as stack:
        tokens = await stack.enter_async_context(known_tokens(folder / "keys.json"))

        async def connect(access: Any, shown: Any = None) -> grpc.aio.Channel:
            port = await stack.enter_async_context(secured(authority, add, access, rows=ROWS, **guards))
            channel = grpc.aio.secure_channel(f"localhost:{port}", authority.channel(shown))
            return await stack.enter_async_context(channel)

        by_certificate = AccessByCertificate(Services(SERVICES))
        web, reader = [await connect(by_certificate, authority.issue(general_name(name))) for name in (WEB, READER)]
        of_tokens = await connect(AccessByToken(tokens))
        alice, gateway = [
            Identity(of_tokens, (("authorization", f"Bearer {token}"),))
            for token in (make_token("alice"), make_token("gateway", scope=f"{CARTS_READ} {CARTS_ACT_AS}"))
        ]
        yield Front(started, finish, Identity(web), Identity(reader), alice, gateway)
        finish.set()


async def reason_of(call: Any) -> tuple[str, dict[str, str]]:
    """The reason and the metadata of a refusal."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    refusal = to_refusal(caught.value)
    assert refusal.code == "RESOURCE_EXHAUSTED"
    return refusal.info.reason, dict(refusal.info.metadata)


async def test_a_service_that_floods_is_rejected_while_others_are_served(tmp_path: Path) -> None:
    async with front(tmp_path, admission=admitting(max_calls=20, max_calls_per_service=3)) as shop:
        flood = [await shop.begin(shop.web, f"user-{number}") for number in range(5)]
        assert [call.done() for call in flood] == [False, False, False, True, True]
        assert await reason_of(flood[3]) == ("TOO_MANY_CALLS", {"holder": "service", "limit": "3"})
        assert await shop.is_served(shop.reader, "user-0")
        assert await shop.is_served(shop.alice, "alice")
        shop.finish.set()
        await asyncio.gather(*flood[:3])
        # Raises if it is rejected.
        await (await shop.begin(shop.web, "user-0"))


async def test_a_service_takes_no_slot_of_a_user_who_calls_itself_or_through_another_service(tmp_path: Path) -> None:
    async with front(tmp_path, admission=admitting(max_calls_per_user=1, max_waiting_per_user=0)) as shop:
        assert await shop.is_served(shop.web, "alice")
        assert await reason_of(await shop.begin(shop.web, "alice")) == (
            "TOO_MANY_CALLS",
            {"holder": "user", "limit": "1"},
        )
        for identity in (shop.reader, shop.alice, shop.gateway):
            assert await shop.is_served(identity, "alice")


async def test_the_calls_of_one_service_wait_in_its_own_share_of_the_room(tmp_path: Path) -> None:
    limits = {"max_calls": 4, "max_calls_per_service": 2, "max_calls_per_user": 1, "max_waiting": 6}
    admission = admitting(**limits)
    async with front(tmp_path, admission=admission) as shop:
        flood = [asyncio.ensure_future(shop.web.call("GetCart", right("GetCart"))) for _ in range(4)]
        await until(lambda: admission.waiting == 3)
        rejected = await shop.begin(shop.web, "alice")
        assert await reason_of(rejected) == ("TOO_MANY_CALLS", {"holder": "service", "limit": "5"})
        assert await shop.is_served(shop.alice, "alice")
        queued = asyncio.ensure_future(shop.alice.call("GetCart", right("GetCart")))
        await until(lambda: admission.waiting == 4)
        shop.finish.set()
        await asyncio.gather(*flood, queued)


async def test_a_token_that_may_act_for_everybody_counts_as_a_service(tmp_path: Path) -> None:
    limits = {"max_calls_per_user": 1, "max_waiting_per_user": 0, "max_calls_per_service": 2}
    async with front(tmp_path, admission=admitting(**limits)) as shop:
        calls = [await shop.begin(shop.gateway, f"user-{number}") for number in range(3)]
        assert [call.done() for call in calls] == [False, False, True]
        assert await reason_of(calls[2]) == ("TOO_MANY_CALLS", {"holder": "service", "limit": "2"})


async def test_the_streams_of_a_service_are_bounded_and_leave_room_for_others(tmp_path: Path) -> None:
    streams = streams_with(max_open=4, max_per_service=2, max_per_user=1)
    async with front(tmp_path, streams=streams) as shop:
        opened = [shop.web.begin("WatchCart", right("WatchCart", f"users/user-{number}")) for number in range(2)]
        for stream in opened:
            assert await stream.read() == cart_service_pb2.WatchCartResponse()
        third = shop.web.begin("WatchCart", right("WatchCart", "users/user-2"))
        assert await reason_of(third.read()) == ("TOO_MANY_STREAMS", {"holder": "service", "limit": "2"})
        others = [
            identity.begin("WatchCart", right("WatchCart", "users/alice")) for identity in (shop.reader, shop.alice)
        ]
        for stream in others:
            assert await stream.read() == cart_service_pb2.WatchCartResponse()
        for stream in (*opened, *others):
            stream.cancel()
        await until(lambda: not streams._tasks)
    assert not any((streams._services, streams._users, streams._connections))


async def test_a_call_or_a_stream_that_is_denied_takes_nothing_of_the_user_that_it_names(tmp_path: Path) -> None:
    nothing = admitting(max_calls_per_user=0, max_waiting_per_user=0)
    async with front(tmp_path, admission=nothing, streams=streams_with(max_per_user=0)) as shop:
        for method in ("GetCart", "WatchCart"):
            refusal = await shop.alice.refuse(method, right(method, "users/bob"))
            assert refusal.info.reason == "PERMISSION_DENIED"


async def test_after_any_mix_of_calls_nothing_of_any_service_is_left(tmp_path: Path) -> None:
    limits = {"max_calls": 5, "max_calls_per_service": 2, "max_calls_per_user": 1, "max_waiting": 6}
    admission, chosen, outcomes = admitting(**limits, max_waiting_per_user=2), random.Random(7), set()

    async def call() -> None:
        service, user = chosen.choice(["", "web", "reader"]), chosen.choice(["alice", "bob", "carol"])
        try:
            await admission.take_slot(user, chosen.choice([0, 40_000]), service)
        except (TooManyCalls, Overloaded) as refusal:
            outcomes.add((refusal.reason, refusal.metadata.get("holder")))
            return
        try:
            assert admission.running <= 5
            assert all(one.running <= 2 and one.waiting <= 2 for one in admission._services.values())
            for _ in range(chosen.randrange(4)):
                await asyncio.sleep(0)
            if chosen.random() < 0.3:
                admission.park()
                await asyncio.sleep(0)
            outcomes.add(("done", None))
        finally:
            admission.free_slot()

    for _ in range(200):
        calls = [asyncio.create_task(call()) for _ in range(chosen.randrange(1, 20))]
        await asyncio.sleep(0)
        for one in chosen.sample(calls, len(calls) // 4):
            one.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        assert (admission.running, admission.waiting) == (0, 0)
        assert not {*admission._services, *admission._users, *admission._running, *admission._parked}
    refusals = {("TOO_MANY_CALLS", "user"), ("TOO_MANY_CALLS", "service"), ("OVERLOADED", None)}
    assert outcomes == {("done", None), *refusals}
