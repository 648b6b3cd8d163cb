"""The services of the compose file, run without an engine: they become healthy, and a rolling restart fails no call."""

import asyncio
import itertools
import secrets
from collections import Counter
from pathlib import Path

import grpc
import pytest
from cartgrpc.v1 import cart_pb2, cart_service_pb2, cart_service_pb2_grpc
from google.protobuf.duration_pb2 import Duration

from tests.debian.composed import Composed
from tests.ports import free_port
from tests.postgres import PostgresServer, running_postgres
from tests.processes.harness import running_programs

pytestmark = [pytest.mark.debian, pytest.mark.timeout(300)]
CALLERS = 4
ACCESS = "local all all trust\nhost all all all scram-sha-256\n"


class Load:
    """Callers in a loop, all on one plain channel: no retries, no health checks."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        stub: cart_service_pb2_grpc.CartServiceAsyncStub = cart_service_pb2_grpc.CartServiceStub(channel)
        self.stub = stub
        self.ended: Counter[str] = Counter()
        self._is_over = False
        self._tasks = [asyncio.create_task(self._call(number)) for number in range(CALLERS)]

    async def _call(self, number: int) -> None:
        cart = f"users/u{number}/carts/default"
        for quantity in itertools.cycle((1, 2)):
            if self._is_over:
                return
            item = cart_pb2.Item(sku="espresso-beans", quantity=quantity)
            try:
                await self.stub.ReplaceItems(cart_service_pb2.ReplaceItemsRequest(name=cart, items=[item]), timeout=20)
                await self.stub.GetCart(cart_service_pb2.GetCartRequest(name=cart), timeout=20)
            except grpc.aio.AioRpcError as error:
                self.ended[f"{error.code().name} {error.details()}"] += 1
            else:
                self.ended["OK"] += 1

    async def more(self, count: int) -> None:
        """Wait for `count` more answers."""
        wanted = self.ended.total() + count
        async with asyncio.timeout(30):
            while self.ended.total() < wanted:
                await asyncio.sleep(0.02)

    async def stop(self) -> None:
        self._is_over = True
        await asyncio.gather(*self._tasks)


def prepare(server: PostgresServer, environment: dict[str, str], password: str) -> None:
    """Do what the image of PostgreSQL does with an empty volume."""
    user, database = environment["POSTGRES_USER"], environment["POSTGRES_DB"]
    server.run(f"CREATE ROLE {user} LOGIN SUPERUSER PASSWORD '{password}'", f"CREATE DATABASE {database} OWNER {user}")
    (server.data / "pg_hba.conf").write_text(ACCESS)
    server.stop()
    server.start()


async def test_all_services_become_healthy_and_a_rolling_restart_under_load_fails_no_call(tmp_path: Path) -> None:
    password = tmp_path / "database-password"
    password.write_text(secrets.token_hex(16))
    with running_postgres(port=free_port()) as server, running_programs(tmp_path) as programs:
        composed = Composed(programs, server, password)
        prepare(server, composed.services["postgresql"]["environment"], password.read_text())
        await composed.until_healthy("postgresql")
        assert await composed.start("migrate").ended(30) == 0
        for name in ("simulator", "cart-1", "cart-2"):
            composed.start(name)
        await asyncio.gather(*map(composed.until_healthy, ("simulator", "cart-1", "cart-2")))
        with composed.proxy() as address:
            async with grpc.aio.insecure_channel(address, options=[("grpc.enable_retries", 0)]) as channel:
                await asyncio.wait_for(channel.channel_ready(), 10)
                load = Load(channel)
                await load.more(200)
                for name in ("cart-1", "cart-2"):
                    assert await composed.stop(name) == 0
                    await load.more(100)
                    composed.start(name)
                    await composed.until_healthy(name)
                    await load.more(100)
                await load.stop()
                request = cart_service_pb2.ReplaceItemsRequest(
                    name="users/u0/carts/default",
                    items=[cart_pb2.Item(sku="espresso-beans", quantity=3)],
                    max_wait=Duration(seconds=20),
                )
                (item,) = (await load.stub.ReplaceItems(request, timeout=40)).cart.items
                assert item.reservation.state == cart_pb2.Reservation.STATE_RESERVED
        assert load.ended.keys() == {"OK"}, load.ended
        assert programs.complaints() == []
