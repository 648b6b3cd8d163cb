"""A rolling restart behind a real HAProxy, with the configuration from docs/operations.md: no call fails."""

import asyncio
import os
import re
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from cartgrpc.v1 import cart_pb2, cart_service_pb2, cart_service_pb2_grpc

from tests.postgres import PostgresServer
from tests.processes.harness import LISTENS, Program, Programs, running_programs

pytestmark = [pytest.mark.debian, pytest.mark.timeout(120)]
DOCUMENT = Path(__file__).parents[2] / "docs" / "operations.md"
CALLERS = 8


@contextmanager
def balancing(folder: Path, servers: list[str]) -> Iterator[tuple[str, Path]]:
    """Run HAProxy in front of `servers`. Yield its address and the socket that answers questions about its state."""
    document = DOCUMENT.read_text()
    found = re.search(r"```haproxy\n(.*?)```", document, re.DOTALL)
    assert found, "operations.md has no configuration of HAProxy"
    taken = found[1]
    (folder / "haproxy").mkdir()
    front, state = folder / "haproxy" / "front", folder / "haproxy" / "state"
    for old, new in {
        "bind :50051": f"bind unix@{front}",
        "10.0.0.1:50051": servers[0],
        "10.0.0.2:50051": servers[1],
        "inter 1s": "inter 100ms",
    }.items():
        assert old in taken
        taken = taken.replace(old, new)
    file = folder / "haproxy" / "haproxy.cfg"
    file.write_text(f"global\n    stats socket {state} level operator\n{taken}")
    program = shutil.which("haproxy", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    assert program, "HAProxy is not installed: make debian installs it"
    command = [program, "-db", "-f", str(file)]
    with file.with_suffix(".log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            yield f"unix:{front}", state
        finally:
            process.kill()


async def states(socket: Path) -> list[str]:
    """HAProxy's view of each server: UP or DOWN."""
    try:
        reader, writer = await asyncio.open_unix_connection(socket)
    except OSError:
        return []
    writer.write(b"show stat\n")
    await writer.drain()
    lines = (await reader.read()).decode().splitlines()
    writer.close()
    return [line.split(",")[17] for line in lines if re.match(r"replicas,(one|two),", line)]


async def until_states(socket: Path, *expected: str) -> None:
    async with asyncio.timeout(30):
        while [state.split()[0] for state in await states(socket)] != list(expected):
            await asyncio.sleep(0.02)


class Load:
    """Callers in a loop, all on one plain channel: no retries, no health checks."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        stub: cart_service_pb2_grpc.CartServiceAsyncStub = cart_service_pb2_grpc.CartServiceStub(channel)
        self._stub = stub
        self.ended: Counter[str] = Counter()
        self._is_over = False
        self._tasks = [asyncio.create_task(self._call(number)) for number in range(CALLERS)]

    async def _call(self, number: int) -> None:
        cart = f"users/u{number}/carts/default"
        item = cart_pb2.Item(sku="espresso-beans", quantity=1)
        while not self._is_over:
            try:
                await self._stub.AddItem(cart_service_pb2.AddItemRequest(parent=cart, item=item), timeout=20)
                await self._stub.GetCart(cart_service_pb2.GetCartRequest(name=cart), timeout=20)
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


async def start(programs: Programs, url: str, listen: str = "127.0.0.1:0") -> tuple[Program, str]:
    settings = {
        "database_url": url,
        "reservation_url": "grpc://127.0.0.1:1",
        "max_quantity_per_item": "1000000",
        "max_units_per_user": "1000000000",
    }
    program = programs.start("serve", listen=listen, lame_duck="2", **settings)
    return program, (await program.says(LISTENS))[1]


async def test_two_replicas_restarted_in_turn_under_load_fail_no_call(postgres: PostgresServer, tmp_path: Path) -> None:
    url = postgres.create_database("rolling", template="template_cart")
    with running_programs(tmp_path) as programs:
        programs.preloaded = True
        replicas = [await start(programs, url) for _ in range(2)]
        with balancing(tmp_path, [address for _, address in replicas]) as (front, socket):
            await until_states(socket, "UP", "UP")
            async with grpc.aio.insecure_channel(front, options=[("grpc.enable_retries", 0)]) as channel:
                load = Load(channel)
                await load.more(200)
                for number, (program, address) in enumerate(replicas):
                    program.send(signal.SIGTERM)
                    expected = ["UP", "UP"]
                    expected[number] = "DOWN"
                    await until_states(socket, *expected)
                    assert await program.ended(20) == 0
                    await load.more(100)
                    await start(programs, url, address)
                    await until_states(socket, "UP", "UP")
                    await load.more(200)
                await load.stop()
        assert load.ended.keys() == {"OK"}, load.ended
        assert programs.complaints() == []
