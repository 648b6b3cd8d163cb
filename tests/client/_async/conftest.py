"""Clients of the servers."""

from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

from cart_grpc.client import AsyncCart, CartClient
from tests.client.scripted import Scripted
from tests.client.shop import Shop


@pytest.fixture
async def client(shop: Shop) -> AsyncIterator[CartClient]:
    """A client of the shop."""
    async with CartClient(shop.address) as client:
        yield client


@pytest.fixture
def cart(client: CartClient) -> AsyncCart:
    """The cart of a new user."""
    return client.cart(str(uuid4()))


@pytest.fixture
async def scripted_cart(scripted: Scripted) -> AsyncIterator[AsyncCart]:
    """A cart at the scripted server. Its calls have 3 seconds."""
    async with CartClient(scripted.address, timeout=3) as client:
        yield client.cart("alice")
