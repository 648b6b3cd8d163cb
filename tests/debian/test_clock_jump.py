"""The clock of the machine, or of PostgreSQL, is set by an hour while the service runs, and while it does not."""

import asyncio
import itertools
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cartgrpc.v1 import cart_pb2

from cart_grpc import app, database_setup
from cart_grpc.settings import Settings
from tests.postgres import running_postgres, shared_temporary_folder
from tests.processes.harness import LISTENS, Program, Programs, Simulated, connected, running_programs
from tests.service.conftest import Replica

pytestmark = pytest.mark.debian

State = cart_pb2.Reservation.State
HOUR = 3600
TTL = 300
CACHE_SECONDS = 1
LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
_numbers = itertools.count()


class FakeClock:
    """The clock of the processes that get `variables`. Their monotonic clock stays as it is."""

    def __init__(self, folder: Path) -> None:
        assert LIBRARY, "libfaketime is not installed: run `make debian`"
        self._file = folder / "offset"
        self.variables = {
            "LD_PRELOAD": str(LIBRARY),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            # Without a cache, each look at the clock reads the file under a lock, which all threads of a process share.
            # Then a call can take longer than its deadline.
            "FAKETIME_CACHE_DURATION": str(CACHE_SECONDS),
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }
        self.offset = 0
        self._write()

    def set_to(self, offset: int) -> None:
        """Set the clock `offset` seconds ahead of the real one."""
        self.offset = offset
        self._write()
        # Until then, processes may still read the earlier offset from their caches.
        time.sleep(2 * CACHE_SECONDS)

    def _write(self) -> None:
        # Replaced, not rewritten: a process must not read half of it.
        new = self._file.with_suffix(".new")
        new.write_text(f"{self.offset:+d}\n")
        new.replace(self._file)

    def now(self) -> float:
        """The time that the processes read."""
        return time.time() + self.offset


@pytest.fixture(scope="module")
def clock() -> Iterator[FakeClock]:
    """A clock in a folder that PostgreSQL's user can read."""
    folder = Path(tempfile.mkdtemp(prefix="clock-", dir=shared_temporary_folder()))
    folder.chmod(0o755)
    yield FakeClock(folder)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def faked_postgres(clock: FakeClock) -> Iterator[Callable[[], str]]:
    """Makes databases on a PostgreSQL server that runs by `clock`, and returns their URLs."""
    with running_postgres(environment=clock.variables) as server:
        yield lambda: server.create_database(f"clock_{next(_numbers)}")


@dataclass
class Setting:
    """A service that reads `clock`, directly or through its database, and an API that does not."""

    programs: Programs
    clock: FakeClock
    url: str
    variables: Mapping[str, str]
    simulated: Simulated = field(init=False)

    async def start(self) -> Program:
        """Start the server."""
        settings = {
            "listen": "127.0.0.1:0",
            "database_url": self.url,
            "reservation_url": self.simulated.url,
            "hold_ttl": str(TTL),
            "reservation_backoff_initial": "2",
            "reservation_backoff_max": "2",
        }
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.variables.items():
                patch.setenv(name, value)
            server = self.programs.start("serve", **settings)
        await server.says(LISTENS)
        return server


@pytest.fixture
async def setting(
    backend: str, request: pytest.FixtureRequest, tmp_path: Path, clock: FakeClock
) -> AsyncIterator[Setting]:
    """The service on each database. SQLite's clock is the server's, PostgreSQL has its own."""
    clock.set_to(0)
    variables = clock.variables if backend == "sqlite" else {}
    url = f"sqlite:///{tmp_path}/cart.db"
    if backend == "postgresql":
        url = request.getfixturevalue("faked_postgres")()
        async with app.open_engine(Settings(database_url=url)) as engine:
            await database_setup.upgrade(engine)
    with running_programs(tmp_path) as programs:
        # libfaketime is loaded by execve.
        programs.preloaded = False
        setting = Setting(programs, clock, url, variables)
        setting.simulated = await programs.simulate()
        yield setting


async def _until(client: Replica, holds: Callable[[cart_pb2.Item], bool], seconds: float = 30) -> cart_pb2.Item:
    """Read the cart until its item fulfils `holds`, and return the item."""
    deadline = time.monotonic() + seconds
    while True:
        (item,) = (await client.get()).items
        if holds(item):
            return item
        assert time.monotonic() < deadline, item
        await asyncio.sleep(0.05)


def _is(state: "State.ValueType") -> Callable[[cart_pb2.Item], bool]:
    return lambda item: item.reservation.state == state


async def test_after_the_clock_was_set_back_what_waits_goes_on_and_no_hold_is_trusted_for_longer(
    setting: Setting,
) -> None:
    await setting.simulated.set_faults(down=True)
    server = await setting.start()
    async with connected((await server.says(LISTENS))[1]) as client:
        await client.add()
        await _until(client, lambda item: item.reservation.attempt_count > 0 and bool(item.reservation.message))
        setting.clock.set_to(-HOUR)
        await setting.simulated.set_faults()
        await _until(client, _is(State.STATE_RESERVED))
        setting.clock.set_to(-2 * HOUR)
        item = await _until(client, lambda item: item.reservation.expire_time.seconds < setting.clock.now() + TTL)
        assert item.reservation.state == State.STATE_RESERVED
        # It will be renewed in time.
        assert item.reservation.next_attempt_time.seconds < setting.clock.now() + 0.8 * TTL
    assert "was set back by 36" in server.errors
    assert setting.programs.complaints() == []


async def test_a_hold_is_renewed_at_the_start_if_the_clock_was_set_back_before_it(setting: Setting) -> None:
    server = await setting.start()
    async with connected((await server.says(LISTENS))[1]) as client:
        await client.add()
        await _until(client, _is(State.STATE_RESERVED))
    os.kill(server.pid, 15)
    await server.ended(20)
    setting.clock.set_to(-HOUR)
    server = await setting.start()
    async with connected((await server.says(LISTENS))[1]) as client:
        item = await _until(client, _is(State.STATE_RESERVED))
        assert item.reservation.expire_time.seconds <= setting.clock.now() + TTL + 1
        effects, _ = await setting.simulated.effects()
    # The hold has lapsed by our clock, so its renewal counts as a second attempt: such an answer may be old, and is not
    # believed while the API's clock is ahead.
    assert [(effect.revision, effect.quantity_after) for effect in effects] == [(1, 1), (2, 1), (3, 1)]
    assert "was set back while no process ran" in server.errors
    assert setting.programs.complaints() == []


async def test_holds_are_asked_for_again_after_the_clock_was_set_forward_and_are_back_once_it_is_right(
    setting: Setting,
) -> None:
    server = await setting.start()
    async with connected((await server.says(LISTENS))[1]) as client:
        await client.add()
        await _until(client, _is(State.STATE_RESERVED))
        setting.clock.set_to(HOUR)
        await _until(client, _is(State.STATE_EXPIRED))
        await setting.simulated.until_called(3)
        setting.clock.set_to(0)
        await _until(client, _is(State.STATE_RESERVED))
    assert setting.programs.complaints() == []
