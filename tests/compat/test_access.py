"""Access to the demos' services: a user's token reaches only that user's cart. In eShop, the token names the user."""

from typing import Any

import pytest
from cartgrpc.compat import eshop_pb2

from tests.authentication.issuer import make_token
from tests.compat.conftest import Demo, Shop
from tests.compat.test_demo_carts import refuse


def bearing(user: str, **claims: Any) -> Any:
    return (("authorization", f"Bearer {make_token(user, **claims)}"),)


def basket_of(*items: tuple[int, int]) -> Any:
    return eshop_pb2.UpdateBasketRequest(
        items=[eshop_pb2.BasketItem(product_id=product, quantity=quantity) for product, quantity in items]
    )


def lines(basket: Any) -> list[tuple[int, int]]:
    return [(item.product_id, item.quantity) for item in basket.items]


@pytest.fixture(params=["oteldemo", "hipstershop"])
def locked(guarded: Shop, request: pytest.FixtureRequest) -> Demo:
    """A demo's service behind tokens."""
    return guarded.demo(request.param)


async def test_a_user_reaches_its_own_cart_only(locked: Demo, user: str) -> None:
    own = bearing(user)
    await locked.add(user, "tea", 1, metadata=own)
    assert [item.quantity for item in (await locked.get(user, metadata=own)).items] == [1]
    for other in ("bob", f"{user}/carts/default", f"{user}x", user[:-1]):
        for call in (
            locked.add(other, "tea", 1, metadata=own),
            locked.get(other, metadata=own),
            locked.empty(other, metadata=own),
        ):
            assert (await refuse(call)).code == "PERMISSION_DENIED"
    assert not (await locked.get("", metadata=own)).items


async def test_without_a_token_nobody_is_served(locked: Demo, user: str) -> None:
    for call in (locked.add(user, "tea", 1), locked.get(user), locked.empty(user), locked.get("")):
        assert (await refuse(call)).code == "UNAUTHENTICATED"


async def test_a_method_needs_its_scope(locked: Demo, user: str) -> None:
    reader, writer = bearing(user, scope="carts.read"), bearing(user, scope="carts.write")
    assert (await refuse(locked.add(user, "tea", 1, metadata=reader))).info.metadata["scope"] == "carts.write"
    assert (await refuse(locked.empty(user, metadata=reader))).info.metadata["scope"] == "carts.write"
    assert (await refuse(locked.get(user, metadata=writer))).info.metadata["scope"] == "carts.read"


async def test_a_service_may_act_for_every_user(locked: Demo, user: str) -> None:
    shop = bearing("shop", scope="carts.read carts.write carts.act-as")
    await locked.add(user, "tea", 1, metadata=shop)
    assert len((await locked.get(user, metadata=shop)).items) == 1


async def test_a_basket_is_that_of_the_token(guarded: Shop, user: str) -> None:
    basket, own = guarded.basket, bearing(user)
    assert lines(await basket.UpdateBasket(basket_of((7, 2), (9, 1)), metadata=own)) == [(7, 2), (9, 1)]
    assert lines(await basket.UpdateBasket(basket_of((9, 3)), metadata=own)) == [(9, 3)]
    assert lines(await basket.GetBasket(eshop_pb2.GetBasketRequest(), metadata=own)) == [(9, 3)]
    assert lines(await basket.GetBasket(eshop_pb2.GetBasketRequest(), metadata=bearing("eve"))) == []
    for _ in range(2):
        await basket.DeleteBasket(eshop_pb2.DeleteBasketRequest(), metadata=own)
        assert lines(await basket.GetBasket(eshop_pb2.GetBasketRequest(), metadata=own)) == []


async def test_without_an_identity_only_an_empty_basket_can_be_read(guarded: Shop, shop: Shop) -> None:
    for basket in (guarded.basket, shop.basket):
        assert lines(await basket.GetBasket(eshop_pb2.GetBasketRequest())) == []
        assert (await refuse(basket.UpdateBasket(basket_of((7, 1))))).code == "UNAUTHENTICATED"
        assert (await refuse(basket.DeleteBasket(eshop_pb2.DeleteBasketRequest()))).code == "UNAUTHENTICATED"


async def test_an_invalid_token_is_not_taken_for_none(guarded: Shop, user: str) -> None:
    expired = bearing(user, expires_in=-100)
    call = guarded.basket.GetBasket(eshop_pb2.GetBasketRequest(), metadata=expired)
    assert (await refuse(call)).code == "UNAUTHENTICATED"
    writer = bearing(user, scope="carts.write")
    call = guarded.basket.GetBasket(eshop_pb2.GetBasketRequest(), metadata=writer)
    assert (await refuse(call)).code == "PERMISSION_DENIED"


@pytest.mark.parametrize(
    ("item", "field"),
    [
        ((0, 1), "product_id"),
        ((-3, 1), "product_id"),
        ((7, 0), "quantity"),
        ((7, -1), "quantity"),
        ((7, 1001), "quantity"),
    ],
)
async def test_a_basket_item_that_breaks_our_rules_is_named(
    item: tuple[int, int], field: str, guarded: Shop, user: str
) -> None:
    refusal = await refuse(guarded.basket.UpdateBasket(basket_of((1, 1), item), metadata=bearing(user)))
    assert (refusal.code, refusal.info.metadata["field"]) == ("INVALID_ARGUMENT", f"items[1].{field}")


async def test_a_sku_that_is_no_number_is_not_in_the_basket(guarded: Shop, user: str) -> None:
    own = bearing(user)
    for sku in ("tea", "007", "2147483648", "12"):
        await guarded.demo("oteldemo").add(user, sku, 1, metadata=own)
    assert lines(await guarded.basket.GetBasket(eshop_pb2.GetBasketRequest(), metadata=own)) == [(12, 1)]
