"""Handshakes of TLS that never finish, fail, or come by the thousands."""

import asyncio
import resource
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import cache
from pathlib import Path

import psutil
import pytest

from cart_grpc.process import WANTED_FILES
from tests.access.guarded import WEB
from tests.attacks.target import CART, Target, running_target
from tests.attacks.wire import PREFACE, SETTINGS, frame
from tests.pem import issue, new_authority
from tests.processes.test_tls import port_of
from tests.waiting import until

pytestmark = pytest.mark.timeout(120)
MIB = 1 << 20
CONNECTIONS = 2_000
# Each takes 20 KiB while it is open. The allocator keeps some of it: 50 to 90 MiB were seen.
ROOM = 250 * MIB
FEW_FILES = 300


@pytest.fixture(scope="module")
async def target(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Target]:
    async with running_target(tmp_path_factory.mktemp("handshakes")) as target:
        yield target


@cache
def client_hello() -> bytes:
    """The first message of a handshake."""
    sent = ssl.MemoryBIO()
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).wrap_bio(ssl.MemoryBIO(), sent, server_hostname="localhost")
    with suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return sent.read()


class Stuck:
    """A connection whose handshake does not go on after `said`; with `drips`, one byte a second."""

    def __init__(self, said: bytes, *, drips: bool) -> None:
        self._said = said
        self._drips = drips
        self.is_open = False
        self.has_ended = False

    async def run(self, port: int) -> None:
        """Connect, and wait until the server closes the connection."""
        with suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            self.is_open = True
            dripping = asyncio.create_task(self._drip(writer))
            try:
                while await reader.read(65_536):
                    pass
            finally:
                dripping.cancel()
                writer.close()
        self.has_ended = True

    async def _drip(self, writer: asyncio.StreamWriter) -> None:
        if not self._drips:
            writer.write(self._said)
            return
        for byte in self._said:
            writer.write(bytes((byte,)))
            await asyncio.sleep(1)


def silent() -> Stuck:
    return Stuck(b"", drips=False)


def half_a_hello() -> Stuck:
    return Stuck(client_hello()[:100], drips=False)


def hello_and_no_more() -> Stuck:
    return Stuck(client_hello(), drips=False)


def one_byte_a_second() -> Stuck:
    return Stuck(client_hello(), drips=True)


async def test_handshakes_that_never_finish_end_and_honest_callers_are_served(target: Target) -> None:
    kinds = (silent, half_a_hello, hello_and_no_more, one_byte_a_second)
    stuck = [make() for _ in range(CONNECTIONS // len(kinds)) for make in kinds]
    async with target.honest() as honest:
        running = [asyncio.create_task(each.run(port_of(target.address))) for each in stuck]
        await until(lambda: sum(each.is_open for each in stuck) == CONNECTIONS)
        most = 0
        while not all(each.has_ended for each in stuck):
            await honest.add(cart=CART)
            async with target.honest() as newcomer:
                await newcomer.add(cart=CART)
            most = max(most, target.memory)
            await asyncio.sleep(0.02)
        await asyncio.gather(*running)
    assert most - target.before < ROOM
    await until(lambda: psutil.Process(target.program.pid).num_fds() < 100)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1], ids=lambda version: version.name)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_old_versions_of_tls_are_refused(version: ssl.TLSVersion, target: Target) -> None:
    context = target.tls()
    # Otherwise this side refuses them itself.
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    for address in (target.address, target.service_address):
        # The server's library sends no alert.
        with pytest.raises(OSError):  # noqa: PT011
            await shake_hands(address, context)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    assert await shake_hands(target.address, context) == "TLSv1.2"


async def shake_hands(address: str, context: ssl.SSLContext) -> str:
    """Connect; return the version of TLS. Raises OSError."""
    _, writer = await asyncio.open_connection("127.0.0.1", port_of(address), ssl=context, server_hostname="localhost")
    version: str = writer.get_extra_info("ssl_object").version()
    writer.close()
    return version


async def test_http_2_has_to_be_negotiated(target: Target) -> None:
    context = target.tls()
    context.set_alpn_protocols(["http/1.1"])
    with pytest.raises(OSError):  # noqa: PT011 - an alert or an end, as the server's library likes
        await hold(target, context)


async def hold(target: Target, context: ssl.SSLContext) -> None:
    """Connect, and read until the server closes the connection."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port_of(target.address), ssl=context, server_hostname="localhost"
    )
    writer.write(PREFACE + frame(SETTINGS))
    data = await reader.read()
    writer.close()
    if not data:
        raise ConnectionResetError


async def test_a_flood_of_wrong_certificates_is_refused_and_services_are_served(target: Target) -> None:
    wrong = [issue(new_authority(), WEB), target.files.web(expired=True), None]
    contexts = [target.tls(shown) for shown in wrong]
    connected, is_over = 0, False

    async def flood(context: ssl.SSLContext) -> None:
        nonlocal connected
        while not is_over:
            # A client learns of its refusal after its own handshake, when it reads.
            with suppress(OSError):
                reader, writer = await asyncio.open_connection(
                    "127.0.0.1", port_of(target.service_address), ssl=context, server_hostname="localhost"
                )
                writer.write(PREFACE + frame(SETTINGS))
                with suppress(OSError):
                    connected += bool(await reader.read(1))
                writer.close()

    flooding = [asyncio.create_task(flood(context)) for context in contexts for _ in range(10)]
    async with target.web() as known:
        for _ in range(20):
            await known.add(cart=CART)
            async with target.web() as newcomer:
                await newcomer.add(cart=CART)
    is_over = True
    await asyncio.gather(*flooding)
    assert connected == 0
    assert target.memory - target.before < ROOM


async def test_many_handshakes_with_resumption_take_bounded_memory(target: Target) -> None:
    context = target.tls()
    # asyncio cannot offer a session, so each thread makes its connections in turn.
    resumed = sum(await asyncio.gather(*(asyncio.to_thread(resume, target, context, 200) for _ in range(4))))
    assert resumed >= 700
    async with target.honest() as honest:
        await honest.add(cart=CART)
    assert target.memory - target.before < ROOM


def resume(target: Target, context: ssl.SSLContext, count: int) -> int:
    """Connect again and again with the session of the connection before. Return how many were resumed."""
    session, resumed = None, 0
    for _ in range(count):
        with (
            socket.create_connection(("127.0.0.1", port_of(target.address)), timeout=30) as plain,
            context.wrap_socket(plain, server_hostname="localhost", session=session) as wire,
        ):
            wire.sendall(PREFACE + frame(SETTINGS))
            # TLS 1.3 sends the ticket after the handshake.
            wire.recv(1)
            session, resumed = wire.session, resumed + bool(wire.session_reused)
    return resumed


async def test_a_server_may_open_as_many_files_as_the_system_lets_it(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # What most systems start a program with.
    resource.setrlimit(resource.RLIMIT_NOFILE, (1_024, hard))
    try:
        async with running_target(tmp_path, inherits_limits=True) as target:
            raised = psutil.Process(target.program.pid).rlimit(psutil.RLIMIT_NOFILE)[0]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert raised == min(hard, WANTED_FILES)


async def test_if_files_are_few_silent_connections_leave_some_for_everything_else(tmp_path: Path) -> None:
    async with running_target(tmp_path, max_files=FEW_FILES) as target, target.honest() as honest:
        await honest.add(cart=CART)
        stuck = [silent() for _ in range(2 * FEW_FILES)]
        running = [asyncio.create_task(each.run(port_of(target.address))) for each in stuck]
        process, most = psutil.Process(target.program.pid), 0
        while sum(each.has_ended for each in stuck) < FEW_FILES:
            most = max(most, process.num_fds())
            await asyncio.sleep(0.02)
        assert most < FEW_FILES - 100
        await honest.add(cart=CART)
        # Each port has connections of its own.
        async with target.web() as service:
            await service.add(cart=CART)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        assert "leaves room for 50 connections at each port" in target.program.errors
