"""The CartService of OpenTelemetry's demo and of Online Boutique, over a socket."""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest
from cartgrpc.compat import eshop_pb2
from cartgrpc.v1 import cart_pb2
from cartgrpc.v1 import cart_service_pb2 as pb
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import REGISTRY

from tests.compat.conftest import Demo, Shop, running_shop, settings_of
from tests.rpc.refusal import Refusal, to_refusal


async def refuse(call: Any) -> Refusal:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return to_refusal(caught.value)


async def test_what_is_added_is_in_the_users_default_cart(demo: Demo, shop: Shop, user: str) -> None:
    added = await demo.add(user, "OLJCESPC7Z", 2)
    await demo.add(user, "66VCHSJNUP", 1)
    assert added == demo.messages.Empty()
    seen = await demo.get(user)
    assert seen.user_id == user
    assert await demo.items(user) == [("OLJCESPC7Z", 2), ("66VCHSJNUP", 1)]
    ours = (await shop.carts.GetCart(pb.GetCartRequest(name=f"users/{user}/carts/default"))).cart
    assert [(item.sku, item.quantity) for item in ours.items] == [("OLJCESPC7Z", 2), ("66VCHSJNUP", 1)]
    # Nothing reserves here: the lines are shown although they are not reserved.
    assert ours.items[0].reservation.state == cart_pb2.Reservation.STATE_PENDING


async def test_an_equal_call_is_another_addition_and_concurrent_ones_make_one_line(demo: Demo, user: str) -> None:
    await asyncio.gather(*(demo.add(user, "tea", 1) for _ in range(20)))
    assert await demo.items(user) == [("tea", 20)]


async def test_a_user_without_a_cart_has_an_empty_one(demo: Demo, user: str) -> None:
    for user_id in (user, ""):
        assert await demo.get(user_id) == demo.messages.Cart()
        assert await demo.empty(user_id) == demo.messages.Empty()


async def test_an_emptied_cart_is_empty_and_can_be_emptied_again(demo: Demo, user: str) -> None:
    await demo.add(user, "tea", 1)
    for _ in range(2):
        assert await demo.empty(user) == demo.messages.Empty()
        assert await demo.get(user) == demo.messages.Cart()
    await demo.add(user, "tea", 3)
    assert await demo.items(user) == [("tea", 3)]


async def test_an_ended_cart_is_empty_and_the_next_item_starts_another(demo: Demo, shop: Shop, user: str) -> None:
    await demo.add(user, "tea", 1)
    merge = pb.MergeCartsRequest(name=f"users/{user}/carts/other", source=f"users/{user}/carts/default")
    await shop.carts.MergeCarts(merge)
    assert await demo.get(user) == demo.messages.Cart()
    assert await demo.empty(user) == demo.messages.Empty()
    await demo.add(user, "tea", 2)
    assert await demo.items(user) == [("tea", 2)]


async def test_the_demos_share_their_carts(shop: Shop, user: str) -> None:
    await shop.demo("oteldemo").add(user, "tea", 1)
    await shop.demo("hipstershop").add(user, "tea", 1)
    assert await shop.demo("oteldemo").items(user) == [("tea", 2)]


@pytest.mark.parametrize(
    ("user_id", "product", "quantity", "field"),
    [
        ("", "tea", 1, "user_id"),
        ("a/b", "tea", 1, "user_id"),
        ("-", "tea", 1, "user_id"),
        ("x" * 129, "tea", 1, "user_id"),
        ("bob", "", 1, "item.product_id"),
        ("bob", "x" * 129, 1, "item.product_id"),
        ("bob", "t\0a", 1, "item.product_id"),
        ("bob", "tea", 0, "item.quantity"),
        ("bob", "tea", -1, "item.quantity"),
        ("bob", "tea", 101, "item.quantity"),
    ],
    ids=lambda value: repr(value)[:12],
)
async def test_a_value_that_breaks_our_rules_is_named(
    user_id: str, product: str, quantity: int, field: str, demo: Demo
) -> None:
    refusal = await refuse(demo.add(user_id, product, quantity))
    assert (refusal.code, refusal.info.metadata["field"]) == ("INVALID_ARGUMENT", field)


async def test_a_user_id_that_breaks_our_rules_is_refused_everywhere(demo: Demo) -> None:
    for call in (demo.get("a/b"), demo.empty("a/b")):
        assert (await refuse(call)).code == "INVALID_ARGUMENT"


async def test_a_line_beyond_its_limit_is_resource_exhausted(demo: Demo, user: str) -> None:
    await demo.add(user, "tea", 100)
    assert (await refuse(demo.add(user, "tea", 51))).code == "RESOURCE_EXHAUSTED"
    assert await demo.items(user) == [("tea", 100)]


async def test_a_restart_keeps_the_carts(user: str, tmp_path: Path) -> None:
    settings = settings_of(tmp_path / "cart.db")
    async with running_shop(settings) as shop:
        await shop.demo("oteldemo").add(user, "tea", 2)
    async with running_shop(settings) as shop:
        assert await shop.demo("oteldemo").items(user) == [("tea", 2)]


async def test_no_reply_is_stored_because_nobody_can_ask_for_it(demo: Demo, user: str, tmp_path: Path) -> None:
    async with running_shop(settings_of(tmp_path / "cart.db")) as shop:
        for _ in range(2):
            await shop.demo(demo.name).add(user, "tea", 1)
        await shop.demo(demo.name).empty(user)
    with closing(sqlite3.connect(tmp_path / "cart.db")) as database:
        assert database.execute("SELECT count(*) FROM replies").fetchone() == (0,)


@pytest.mark.parametrize("service", ["", "oteldemo.CartService", "hipstershop.CartService", "BasketApi.Basket"])
async def test_health_knows_the_services(service: str, shop: Shop) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{shop.health_port}") as checks:
        for channel in (shop.channel, checks):
            health: Any = health_pb2_grpc.HealthStub(channel)
            answer = await health.Check(health_pb2.HealthCheckRequest(service=service), timeout=20)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_only_the_demos_in_the_setting_are_served(user: str, tmp_path: Path) -> None:
    async with running_shop(settings_of(tmp_path / "cart.db", compat=("hipstershop",))) as shop:
        assert await shop.demo("hipstershop").items(user) == []
        for call in (shop.demo("oteldemo").get(user), shop.basket.GetBasket(eshop_pb2.GetBasketRequest())):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_the_methods_pass_through_the_same_layers(demo: Demo, user: str) -> None:
    method = f"{demo.name}.CartService/AddItem"
    labels = {"rpc_system_name": "grpc", "rpc_method": method, "rpc_response_status_code": "INVALID_ARGUMENT"}
    name = "rpc_server_call_duration_seconds_count"
    before = REGISTRY.get_sample_value(name, labels) or 0
    await refuse(demo.add(user, "", 1))
    # The server counts a call after the caller has its answer.
    async with asyncio.timeout(20):
        while REGISTRY.get_sample_value(name, labels) != before + 1:
            await asyncio.sleep(0.01)
    assert REGISTRY.get_sample_value("cart_calls_refused_total", {"rpc_method": method, "reason": "INVALID_FIELD"})
