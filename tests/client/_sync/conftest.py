# Made by `make sync-client` from the file of the same name in _async. Do not edit.
"""Clients of the servers."""

from collections.abc import Iterator
from uuid import uuid4

import pytest

from cart_grpc.client import SyncCart, SyncCartClient
from tests.client.scripted import Scripted
from tests.client.shop import Shop


@pytest.fixture
def client(shop: Shop) -> Iterator[SyncCartClient]:
    """A client of the shop."""
    with SyncCartClient(shop.address) as client:
        yield client


@pytest.fixture
def cart(client: SyncCartClient) -> SyncCart:
    """The cart of a new user."""
    return client.cart(str(uuid4()))


@pytest.fixture
def scripted_cart(scripted: Scripted) -> Iterator[SyncCart]:
    """A cart at the scripted server. Its calls have 3 seconds."""
    with SyncCartClient(scripted.address, timeout=3) as client:
        yield client.cart("alice")
