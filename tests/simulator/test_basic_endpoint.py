"""The simulator's `basic` endpoint: weak on purpose, with the same stock and journal."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from cart_grpc.simulator.journal import Journal
from cart_grpc.simulator.server import SimulatorServer
from cart_grpc.simulator.simulator import Simulator
from cart_grpc.simulator.stock import Stock
from tests.intents import START, hold

SKU = "espresso-beans"


@pytest.fixture
async def url(simulator: Simulator) -> AsyncIterator[str]:
    server = SimulatorServer(simulator)
    ports = await server.start(None, "127.0.0.1:0")
    yield f"http://127.0.0.1:{ports.http}/basic"
    await server.stop(0)


async def call(method: str, url: str, **more: Any) -> tuple[int, Any]:
    async with aiohttp.ClientSession() as session, session.request(method, url, **more) as response:
        return response.status, await response.json() if response.content_type == "application/json" else None


async def test_the_same_post_reserves_again_until_there_is_no_stock(url: str, simulator: Simulator) -> None:
    body = {"id": "x", "item": SKU, "quantity": 5}
    assert await call("POST", url, json=body) == (201, {"reservation_id": "1"})
    assert await call("POST", url, json=body) == (201, {"reservation_id": "2"})
    status, error = await call("POST", url, json=body)
    assert (status, error["error"]["reason"]) == (409, "OUT_OF_STOCK")
    assert await call("GET", url, params={"id": "x"}) == (
        200,
        [{"reservation_id": number, **body} for number in ("1", "2")],
    )
    assert simulator.levels(SKU).held == 10


async def test_a_delete_releases_one_reservation_and_keeps_the_others(url: str, simulator: Simulator) -> None:
    for _ in range(2):
        await call("POST", url, json={"id": "x", "item": SKU, "quantity": 1})
    assert await call("DELETE", f"{url}/1") == (204, None)
    assert (await call("DELETE", f"{url}/1"))[0] == 404
    assert [live["reservation_id"] for live in (await call("GET", url, params={"id": "x"}))[1]] == ["2"]
    assert simulator.levels(SKU).held == 1


async def test_an_unknown_id_has_no_reservations(url: str) -> None:
    assert await call("GET", url, params={"id": "nobody's"}) == (200, [])
    assert await call("GET", url) == (200, [])


async def test_a_reservation_of_the_other_contract_cannot_be_deleted(url: str, simulator: Simulator) -> None:
    intent = hold(2)
    await simulator.apply(lambda: intent)
    assert (await call("DELETE", f"{url}/{intent.reservation_id}"))[0] == 404
    assert simulator.levels(SKU).held == 2


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b'{"id": "x", "item": "y"}',
        b'{"id": 1, "item": "y", "quantity": 1}',
        b'{"id": "", "item": "y", "quantity": 1}',
        b'{"id": "x", "item": "", "quantity": 1}',
        b'{"id": "x", "item": "y", "quantity": 0}',
        b'{"id": "x", "item": "y", "quantity": true}',
        b'{"id": "x", "item": "y", "quantity": 2147483648}',
        b"[" * 100_000,
    ],
)
async def test_a_body_that_breaks_the_contract_is_refused(url: str, simulator: Simulator, body: bytes) -> None:
    assert (await call("POST", url, data=body))[0] == 400
    assert simulator.effects() == []


async def test_reservations_of_basic_never_expire_and_survive_a_restart(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    first = Stock(default_total=10, log=journal.write)
    for _ in range(3):
        first.reserve("x", SKU, 1, START)
    first.delete("2", START)
    journal.close()
    again = Journal(tmp_path / "journal")
    second = Stock(default_total=10, entries=again.entries, log=again.write)
    assert second.find_live("x", START + 10**15) == first.find_live("x", START)
    assert second.reserve("x", SKU, 1, START).intent.reservation_id == "4"
    again.close()


async def test_each_of_several_concurrent_posts_reserves(url: str, simulator: Simulator) -> None:
    body = {"id": "x", "item": SKU, "quantity": 1}
    await asyncio.gather(*(call("POST", url, json=body) for _ in range(5)))
    assert len((await call("GET", url, params={"id": "x"}))[1]) == 5
