"""Floods of calls that are refused: honest callers are served, and the work for strangers is bounded."""

import asyncio
import base64
import itertools
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from cartgrpc.v1 import cart_service_pb2

from cart_grpc.authentication.turns import BURST_SECONDS, REFUSAL_SECONDS, SHARE
from tests.access.guarded import WEB
from tests.attacks.target import CART, Target, running_target
from tests.attacks.wire import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    MAX_FRAME,
    Wire,
    call_of,
    frame,
    message,
    wired,
)
from tests.authentication.issuer import make_token, signing_key, to_key_set
from tests.authentication.key_server import KeyServer
from tests.pem import issue
from tests.service.conftest import Replica

pytestmark = pytest.mark.timeout(120)
MIB = 1 << 20
SECONDS = 1.5
CONNECTIONS = 4
# As many of its 100 calls as a connection keeps open.
OPEN_CALLS = 90
ROOM = 150 * MIB
PATH = "/cartgrpc.v1.CartService/GetCart"
JOBS = "jobs.example"
Tokens = Callable[[], Iterator[str]]


@pytest.fixture(scope="module")
async def target(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Target]:
    scopes = ["carts.read", "carts.write", "carts.act-as"]
    services = json.dumps({WEB: scopes, JOBS: scopes})
    async with running_target(tmp_path_factory.mktemp("flooded"), services=services) as target:
        yield target


def no_tokens() -> Iterator[str]:
    return itertools.repeat("")


def garbage() -> Iterator[str]:
    return (f"garbage-{number}" for number in itertools.count())


def wrong_signatures() -> Iterator[str]:
    """Each token is another one: none can be remembered."""
    start, _, signature = make_token("mallory").rpartition(".")
    return (f"{start}.{number:08d}{signature[8:]}" for number in itertools.count())


def unknown_kids() -> Iterator[str]:
    rest = make_token("mallory").partition(".")[2]
    for number in itertools.count():
        header = json.dumps({"typ": "JWT", "alg": "ES256", "kid": f"key-{number}"}).encode()
        yield f"{base64.urlsafe_b64encode(header).decode().rstrip('=')}.{rest}"


def too_much_metadata() -> Iterator[str]:
    return itertools.repeat("x" * 17_000)


async def flood(wire: Wire, tokens: Iterator[str], user_id: str = "mallory") -> None:
    """Keep OPEN_CALLS open, each with the next token."""
    streams, opened = itertools.count(1, 2), 0
    body = cart_service_pb2.GetCartRequest(name=f"users/{user_id}/carts/default").SerializeToString()
    while not wire.has_ended:
        room = OPEN_CALLS - (opened - len(wire.ended_streams))
        await wire.send(
            open_call(stream, token) + frame(DATA, END_STREAM, stream, message(len(body)) + body)
            for stream, token in zip(itertools.islice(streams, room), tokens, strict=False)
        )
        opened += room
        await asyncio.sleep(0.001)


def open_call(stream: int, token: str) -> bytes:
    headers = call_of(PATH, token)
    first, rest = headers[:MAX_FRAME], headers[MAX_FRAME:]
    if not rest:
        return frame(HEADERS, END_HEADERS, stream, first)
    return frame(HEADERS, 0, stream, first) + frame(CONTINUATION, END_HEADERS, stream, rest)


@asynccontextmanager
async def flooding(target: Target, tokens: Iterator[str]) -> AsyncIterator[list[Wire]]:
    """Flood the callers' port from several connections until the block ends."""
    async with AsyncExitStack() as stack:
        wires = [await stack.enter_async_context(wired(target.address, tls=target.tls())) for _ in range(CONNECTIONS)]
        tasks = [asyncio.create_task(flood(wire, tokens)) for wire in wires]
        yield wires
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert not any(task.exception() for task in tasks if not task.cancelled())


async def serve_meanwhile(clients: list[Replica]) -> None:
    """Let honest clients call for a while. All of it must succeed."""
    began, served = time.monotonic(), 0
    while time.monotonic() - began < SECONDS or served < 5:
        for client in clients:
            await client.add(cart=CART)
        served += 1
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("tokens", [no_tokens, garbage, wrong_signatures, unknown_kids, too_much_metadata])
async def test_in_a_flood_of_strangers_users_and_services_are_served(tokens: Tokens, target: Target) -> None:
    async with target.honest() as user, target.web() as service:
        await user.add(cart=CART)
        async with flooding(target, tokens()) as wires:
            await serve_meanwhile([user, service])
            # So is a user whose token is new.
            async with target.honest() as newcomer:
                await newcomer.add(cart=CART)
        assert all(len(wire.ended_streams) > 0 for wire in wires)
    assert target.memory - target.before < ROOM


@pytest.mark.parametrize("tokens", [no_tokens, garbage, wrong_signatures])
async def test_strangers_take_no_more_than_their_share_of_the_server(tokens: Tokens, target: Target) -> None:
    async with flooding(target, tokens()) as wires:
        began = time.monotonic()
        # More than the burst, which may be answered at once.
        while sum(len(wire.ended_streams) for wire in wires) < 2_000:
            await asyncio.sleep(0.01)
        answered = sum(len(wire.ended_streams) for wire in wires)
        seconds = time.monotonic() - began
    # A bound of the server's: on a slow machine it answers fewer.
    assert answered <= (seconds + 2 * BURST_SECONDS) * SHARE / REFUSAL_SECONDS + CONNECTIONS


async def test_a_flood_of_unknown_kids_causes_few_fetches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with KeyServer().running() as keys:
        keys.reset(to_key_set(signing_key("ES256")))
        keys.write_authority(tmp_path / "trust.pem")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "trust.pem"))
        began = time.monotonic()
        async with running_target(tmp_path, token_keys=keys.url) as target, target.honest() as user:
            async with flooding(target, unknown_kids()) as wires:
                await serve_meanwhile([user])
            assert sum(len(wire.ended_streams) for wire in wires) > 100
        # One at the start, and one for unknown kids every five seconds.
        assert keys.requests <= 2 + (time.monotonic() - began) / 5


async def test_a_flood_of_one_service_starves_neither_users_nor_another_service(target: Target) -> None:
    is_over = False

    async def overload(client: Replica, number: int) -> None:
        cart = f"users/u{number}/carts/default"
        request = cart_service_pb2.AddItemRequest(parent=cart)
        request.item.sku = "tea"
        while not is_over:
            await client.stub.AddItem(request, timeout=60).code()

    other = issue(target.files.callers, JOBS)
    async with target.honest() as user, target.web(other) as service, AsyncExitStack() as stack:
        attackers = [await stack.enter_async_context(target.web()) for _ in range(CONNECTIONS)]
        tasks = [asyncio.create_task(overload(attackers[number % CONNECTIONS], number)) for number in range(300)]
        await serve_meanwhile([user, service])
        is_over = True
        await asyncio.gather(*tasks)
