"""A service whose token the Reservation API refuses: a fault of its configuration, which must reject no item."""

import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cartgrpc.v1 import cart_pb2

from cart_grpc.settings import Settings
from cart_grpc.simulator.access import Access
from cart_grpc.simulator.server import SimulatorServer
from cart_grpc.simulator.simulator import Simulator
from cart_grpc.tls import reloaded_files
from tests.pem import PemFolder
from tests.service.conftest import running_replica, url_at

State = cart_pb2.Reservation.State
SECRET = "hunter2"


@pytest.fixture
def backend() -> str:
    return "sqlite"


@pytest.fixture(params=["grpc", "http", "basic"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def files(tmp_path: Path) -> PemFolder:
    """The token of the service, and those that the API accepts."""
    files = PemFolder(tmp_path)
    files.write("token", f"{SECRET}\n")
    files.write("api-tokens", "another")
    return files


@pytest.fixture
async def simulator_url(simulator: Simulator, transport: str, files: PemFolder) -> AsyncIterator[str]:
    server = SimulatorServer(simulator, Access(tokens=files.write("api-tokens", "another")))
    ports = await server.start("127.0.0.1:0", "127.0.0.1:0")
    yield url_at(ports, transport)
    await server.stop(0)


async def test_items_wait_until_the_api_accepts_the_token(
    settings: Settings,
    simulator: Simulator,
    files: PemFolder,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(reloaded_files, "CHECK_SECONDS", 0.0)
    settings = settings.with_changes(
        reservation_token_file=str(files.folder / "token"), reservation_probe_interval=0.05
    )
    with caplog.at_level(logging.DEBUG):
        async with running_replica(settings) as replica:
            for number in range(8):
                await replica.add(f"sku-{number}")
            await replica.eventually(lambda _: "the Reservation API refuses this service (" in caplog.text)
            cart = await replica.get()
            assert {item.reservation.state for item in cart.items} == {State.STATE_PENDING}
            assert simulator.call_count == 0
            files.write("token", "another\n")
            cart = await replica.settled()
            assert {item.reservation.state for item in cart.items} == {State.STATE_RESERVED}
            assert all(simulator.levels(item.sku).held == 1 for item in cart.items)
    assert SECRET not in caplog.text
