"""Servers for the tests of both clients."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.client.scripted import Scripted, scripted_server
from tests.client.shop import KILLABLE, Shop, running_shop


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A shop for the whole run; each test has its own user."""
    with running_shop(tmp_path_factory.mktemp("shop")) as shop:
        yield shop


@pytest.fixture
def own_shop(tmp_path: Path) -> Iterator[Shop]:
    """A shop that the test may stop. Its Reservation API is down."""
    settings = {"reservation_url": "grpc://127.0.0.1:1", "max_quantity_per_item": "1000000"}
    with running_shop(tmp_path, KILLABLE, **settings) as shop:
        yield shop


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    """A server that answers as the test says."""
    with scripted_server() as scripted:
        yield scripted


@pytest.fixture
def unused_address() -> Iterator[str]:
    """An address where nothing listens."""
    with socket.socket() as bound:
        # While it is bound, no server of another test can get the port.
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"
