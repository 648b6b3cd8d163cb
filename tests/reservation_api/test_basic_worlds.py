"""The `basic` contract in thousands of made-up minutes: real rules and client, a network and clocks that are not.

Two workers share a row. Calls are lost, answered late, and take effect up to the grace after their deadline; workers
are paused at any step for longer than a lease, or die; the caller changes his mind. As long as no request is later
than that, never are two reservations live, and never is more shown as reserved than is held. Where requests come later,
or twice, that is made good.
"""

import asyncio
import json
import random
import selectors
from typing import Any, cast

import pytest

from cart_grpc.carts.progress import progress
from cart_grpc.protocol.attempts import open_attempt, update_attempt
from cart_grpc.protocol.reservation import Answer, Disposition, NoAnswer, Observed, Reservation
from cart_grpc.protocol.transitions import hold, next_intent, record_outcome, release
from cart_grpc.reservation_api.api import NoAnswerError
from cart_grpc.reservation_api.basic_api import BasicReservationApi
from cart_grpc.reservation_api.http_client import HttpAnswer, HttpClient
from cart_grpc.simulator.stock import Stock
from tests.carts.examples import a_hold, line_of

LEASE, TIMEOUT, GRACE = 3.0, 10.0, 20.0
SECOND = 1_000_000


class _Skipping(selectors.SelectSelector):
    """Nothing is waited for: the time is then."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        self.now += timeout or 0.0
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to what is due next."""

    def __init__(self) -> None:
        self.skipping = _Skipping()
        super().__init__(self.skipping)

    def time(self) -> float:
        return self.skipping.now


class World:
    """One row, one API, and what goes wrong between them, all drawn from `seed`.

    A request takes effect up to `lateness` graces after its deadline, and `again` is how probably twice.
    """

    def __init__(self, seed: int, lateness: float, again: float) -> None:
        self.lateness = lateness
        self.again = again
        self.numbers = random.Random(seed)
        self.loop = asyncio.get_running_loop()
        self.stock = Stock(default_total=8)
        self.row = a_hold(2)._replace(due_time=0, create_time=0)
        self.hostile = True
        self.broken = ""
        self.api = BasicReservationApi("", cast("HttpClient", self))

    @property
    def now(self) -> int:
        return int(self.loop.time() * SECOND)

    @property
    def live(self) -> list[int]:
        return [each.granted for each in self.stock.find_live(self.row.reservation_id, self.now)]

    def put(self, row: Reservation) -> None:
        """The row is now so; what is promised holds."""
        self.row = row
        self.check()

    def check(self) -> None:
        """What must hold at any time."""
        broken = self.find_broken()
        if broken and not self.broken:
            self.broken = f"{broken} at {self.loop.time():.1f} s: {self.row}"

    def find_broken(self) -> str:
        if len(self.live) > 1:
            return "two are live"
        if self.row.disposition is not Disposition.RELEASE:
            shown = progress(line_of(self.row), self.now)
            return "" if shown.reserved_quantity <= sum(self.live) else f"{shown} with {self.live} live"
        return "released, and live" if self.row.settled and self.live else ""

    async def call(self, method: str, url: str, body: Any = None, *, timeout: float, **query: str) -> HttpAnswer:
        """The network, in the client's place."""
        late = self.hostile and self.numbers.random() < 0.3
        lost_before, lost_after = (self.hostile and self.numbers.random() < 0.15 for _ in range(2))
        answer: asyncio.Future[HttpAnswer] = self.loop.create_future()

        def arrive() -> None:
            outcome = self.take_effect(method, url, body)
            if not lost_after and not answer.done():
                answer.set_result(outcome)

        latest = timeout + self.lateness * GRACE
        if not lost_before:
            self.loop.call_later(self.numbers.uniform(0, latest if late else 0.5), arrive)
        if self.hostile and self.numbers.random() < self.again:
            self.loop.call_later(self.numbers.uniform(0, latest), arrive)
        try:
            async with asyncio.timeout(timeout):
                return await answer
        except TimeoutError:
            raise NoAnswerError("DEADLINE_EXCEEDED", "") from None

    def take_effect(self, method: str, url: str, body: Any) -> HttpAnswer:
        status, told = 200, cast("object", {})
        if method == "GET":
            live = self.stock.find_live(self.row.reservation_id, self.now)
            told = [
                {"reservation_id": each.intent.reservation_id, "id": self.row.reservation_id, "quantity": each.granted}
                for each in live
            ]
        elif method == "DELETE":
            status = 200 if self.stock.give_back(url[1:], self.now) else 404
        else:
            made = self.stock.reserve(body["id"], body["item"], body["quantity"], self.now)
            status = 409 if made.state is Observed.REJECTED else 201
            told = {"reservation_id": made.intent.reservation_id}
        if status >= 400:
            told = {"error": {"reason": "NO"}}
        self.check()
        return HttpAnswer(status, {"Content-Type": "application/json"}, json.dumps(told).encode())

    def clock(self) -> int:
        return self.now

    async def pause(self) -> None:
        if self.hostile and self.numbers.random() < 0.15:
            await asyncio.sleep(self.numbers.uniform(0, 4 * TIMEOUT))

    def find_claimed(self) -> Reservation | None:
        row = self.row
        if row.due_time is None or row.due_time > self.now:
            return None
        until = self.now + int(LEASE * SECOND)
        revision = row.revision + (1 if row.settled else 0)
        self.put(
            row._replace(revision=revision, lease_epoch=row.lease_epoch + 1, lease_expire_time=until, due_time=until)
        )
        return self.row

    async def work(self) -> None:
        """One worker: it dies now and then, and another comes."""
        while True:
            await asyncio.sleep(self.numbers.uniform(0.1, 2) * (1 if self.hostile else 30))
            claimed = self.find_claimed()
            if claimed is None:
                continue
            reconciling = asyncio.ensure_future(self.reconcile(claimed))
            life = self.numbers.uniform(0, 30) if self.hostile and self.numbers.random() < 0.1 else None
            await asyncio.wait([reconciling], timeout=life)
            reconciling.cancel()
            await asyncio.gather(reconciling, return_exceptions=not reconciling.done())

    async def reconcile(self, claimed: Reservation) -> None:
        intent = next_intent(claimed)
        assert intent is not None
        attempt = WorldAttempt(self, claimed)
        outcome: Answer | NoAnswer
        deadline = self.loop.time() + TIMEOUT
        await self.pause()
        try:
            outcome = await self.api.apply(intent, timeout=deadline - self.loop.time(), attempt=attempt)
        except NoAnswerError as silence:
            outcome = NoAnswer(silence.code, "")
        await self.pause()
        after = record_outcome(
            self.row,
            claimed.lease_epoch,
            claimed.revision,
            outcome,
            self.now,
            self.now + int(self.numbers.random() * SECOND),
        )
        self.put(update_attempt(after, outcome, attempt.opened, self.now, int(GRACE * SECOND)))

    async def change_mind(self, times: int) -> None:
        for _ in range(times):
            await asyncio.sleep(self.numbers.uniform(0, 40))
            if not self.row.is_closed:
                self.put(hold(self.row, self.numbers.randint(1, 9), self.now))
        await asyncio.sleep(self.numbers.uniform(0, 60))
        if self.numbers.random() < 0.5:
            self.put(release(self.row, self.now))


class WorldAttempt:
    """Implements Attempt with the real rules."""

    def __init__(self, world: World, claimed: Reservation) -> None:
        self.opened: int | None = None
        self._world = world
        self._claimed = claimed
        self.uncertain_us = max(
            0, (claimed.uncertain_until or 0) - ((claimed.lease_expire_time or 0) - int(LEASE * SECOND))
        )

    async def open(self, timeout_us: int) -> bool:
        world = self._world
        # What was looked up before may not be so any more.
        await world.pause()
        opened = open_attempt(world.row, self._claimed, timeout_us + int(GRACE * SECOND), world.now)
        if opened is None:
            return False
        world.put(opened)
        self.opened = opened.uncertain_until
        await world.pause()
        return True


async def live_through(seed: int, lateness: float, again: float, rest: float) -> World:
    """A world, its troubles, and `rest` seconds after them."""
    world = World(seed, lateness, again)
    workers = [asyncio.ensure_future(world.work()) for _ in range(2)]

    async def story() -> None:
        await world.change_mind(world.numbers.randint(0, 4))
        world.hostile = False
        await asyncio.sleep(rest)

    telling = asyncio.ensure_future(story())
    done, _ = await asyncio.wait([telling, *workers], return_when=asyncio.FIRST_COMPLETED)
    for task in (telling, *workers):
        task.cancel()
    await asyncio.gather(telling, *workers, return_exceptions=True)
    for task in done:
        await task
    return world


def run(seed: int, *, lateness: float, again: float, rest: float) -> World:
    """A world whose end is exact: held is what was granted, and nothing else."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        world = runner.run(live_through(seed, lateness, again, rest))
        row = world.row
        assert row.settled, (seed, row)
        held = row.state is Observed.HELD
        assert world.live == ([row.granted_quantity] if held else []), (seed, row)
        assert held == (row.disposition is Disposition.HOLD), (seed, row)
        return world


@pytest.mark.parametrize("first", range(0, 1000, 200))
def test_within_the_grace_one_is_live_at_most_and_what_is_shown_is_held(first: int) -> None:
    for seed in range(first, first + 200):
        world = run(seed, lateness=0.99, again=0, rest=1200)
        assert not world.broken, (seed, world.broken)


@pytest.mark.parametrize("first", range(0, 100, 50))
def test_what_comes_later_or_twice_is_made_good(first: int) -> None:
    worlds = [run(seed, lateness=5, again=0.1, rest=25 * 3600) for seed in range(first, first + 50)]
    assert any(world.broken for world in worlds)
