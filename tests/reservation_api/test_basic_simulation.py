"""A simulation of the `basic` contract: the real rules and client, a simulated network and clock.

Two workers share one row. Calls are lost, are answered late, and take effect up to the grace after their deadline.
Workers pause at any step for longer than a lease, or die. The caller changes the quantity or removes the item. If no
request takes effect later than the grace, two reservations are never live at once, and the cart never shows more
reserved than is held. If requests take effect later, or twice, both hold again in the end.
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
    """Moves the clock by the timeout instead of waiting."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        self.now += timeout or 0.0
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer."""

    def __init__(self) -> None:
        self.skipping = _Skipping()
        super().__init__(self.skipping)

    def time(self) -> float:
        return self.skipping.now


class BasicSimulation:
    """One row, one API and the faults between them, all drawn from `seed`.

    A request takes effect up to `lateness` graces after its deadline, and a second time with probability `again`.
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
        """Store the row and check the invariants."""
        self.row = row
        self.check()

    def check(self) -> None:
        """Remember the first broken invariant."""
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
        """Carry one request. Stands in for HttpClient.call."""
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
        status, body_sent = 200, cast("object", {})
        if method == "GET":
            live = self.stock.find_live(self.row.reservation_id, self.now)
            body_sent = [
                {"reservation_id": each.intent.reservation_id, "id": self.row.reservation_id, "quantity": each.granted}
                for each in live
            ]
        elif method == "DELETE":
            status = 200 if self.stock.delete(url[1:], self.now) else 404
        else:
            made = self.stock.reserve(body["id"], body["item"], body["quantity"], self.now)
            status = 409 if made.state is Observed.REJECTED else 201
            body_sent = {"reservation_id": made.intent.reservation_id}
        if status >= 400:
            body_sent = {"error": {"reason": "NO"}}
        self.check()
        return HttpAnswer(status, {"Content-Type": "application/json"}, json.dumps(body_sent).encode())

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
        """Run one worker. Some of its attempts die half-way; then it starts anew."""
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
        attempt = SimulatedAttempt(self, claimed)
        outcome: Answer | NoAnswer
        deadline = self.loop.time() + TIMEOUT
        await self.pause()
        try:
            outcome = await self.api.apply(intent, timeout=deadline - self.loop.time(), attempt=attempt)
        except NoAnswerError as error:
            outcome = NoAnswer(error.code, "")
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

    async def change_intent(self, times: int) -> None:
        for _ in range(times):
            await asyncio.sleep(self.numbers.uniform(0, 40))
            if not self.row.is_closed:
                self.put(hold(self.row, self.numbers.randint(1, 9), self.now))
        await asyncio.sleep(self.numbers.uniform(0, 60))
        if self.numbers.random() < 0.5:
            self.put(release(self.row, self.now))


class SimulatedAttempt:
    """Implements Attempt with the real rules."""

    def __init__(self, simulation: BasicSimulation, claimed: Reservation) -> None:
        self.opened: int | None = None
        self._simulation = simulation
        self._claimed = claimed
        self.uncertain_us = max(
            0, (claimed.uncertain_until or 0) - ((claimed.lease_expire_time or 0) - int(LEASE * SECOND))
        )

    async def open(self, timeout_us: int) -> bool:
        simulation = self._simulation
        # After this pause, the result of the look-up may be stale.
        await simulation.pause()
        opened = open_attempt(simulation.row, self._claimed, timeout_us + int(GRACE * SECOND), simulation.now)
        if opened is None:
            return False
        simulation.put(opened)
        self.opened = opened.uncertain_until
        await simulation.pause()
        return True


async def simulate(seed: int, lateness: float, again: float, rest: float) -> BasicSimulation:
    """Run one simulation: its faults first, then `rest` seconds without faults."""
    simulation = BasicSimulation(seed, lateness, again)
    workers = [asyncio.ensure_future(simulation.work()) for _ in range(2)]

    async def story() -> None:
        await simulation.change_intent(simulation.numbers.randint(0, 4))
        simulation.hostile = False
        await asyncio.sleep(rest)

    changing = asyncio.ensure_future(story())
    done, _ = await asyncio.wait([changing, *workers], return_when=asyncio.FIRST_COMPLETED)
    for task in (changing, *workers):
        task.cancel()
    await asyncio.gather(changing, *workers, return_exceptions=True)
    for task in done:
        await task
    return simulation


def run(seed: int, *, lateness: float, again: float, rest: float) -> BasicSimulation:
    """Run one simulation and check its end: exactly the granted quantity is held."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        simulation = runner.run(simulate(seed, lateness, again, rest))
        row = simulation.row
        assert row.settled, (seed, row)
        held = row.state is Observed.HELD
        assert simulation.live == ([row.granted_quantity] if held else []), (seed, row)
        assert held == (row.disposition is Disposition.HOLD), (seed, row)
        return simulation


def few(count: int, each: int) -> list[Any]:
    """The first seeds of `count` tests that run `each` seeds, and of ten times as many for the night."""
    night = (pytest.param(first, marks=pytest.mark.night) for first in range(count * each, 11 * count * each, each))
    return [*range(0, count * each, each), *night]


@pytest.mark.parametrize("first", few(2, 200))
def test_within_the_grace_at_most_one_reservation_is_live_and_never_more_shown_than_held(first: int) -> None:
    for seed in range(first, first + 200):
        simulation = run(seed, lateness=0.99, again=0, rest=1200)
        assert not simulation.broken, (seed, simulation.broken)


@pytest.mark.parametrize("first", few(2, 15))
def test_requests_that_take_effect_too_late_or_twice_are_corrected_in_the_end(first: int) -> None:
    simulations = [run(seed, lateness=5, again=0.1, rest=25 * 3600) for seed in range(first, first + 15)]
    assert any(simulation.broken for simulation in simulations)
