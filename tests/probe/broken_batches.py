"""Reservation APIs whose batches differ from their single calls in one way each."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

from cart_grpc.protocol.reservation import Disposition, Intent
from cart_grpc.simulator.errors import BadRequest, CallFailed, RevisionTooLow, SimulatorError
from cart_grpc.simulator.simulator import Outcome, SimulatedReply, Simulator

Reads = Sequence[Callable[[], Intent]]
Outcomes = AsyncGenerator[Sequence[Outcome], None]


class ChangesOutcomes(Simulator):
    """Answers with the outcomes that `change` makes of those of each message."""

    def change(self, outcomes: Sequence[Outcome]) -> Sequence[Outcome]:
        raise NotImplementedError

    async def apply_batch(self, reads: Reads) -> Outcomes:
        async with aclosing(super().apply_batch(reads)) as ready:
            async for outcomes in ready:
                yield self.change(outcomes)


class ChangesBatches(Simulator):
    """Handles the entries that `change` makes of those of the client."""

    def change(self, reads: Reads) -> Reads:
        raise NotImplementedError

    async def apply_batch(self, reads: Reads) -> Outcomes:
        async with aclosing(super().apply_batch(self.change(reads))) as ready:
            async for outcomes in ready:
                yield outcomes


class OneErrorFailsAll(ChangesOutcomes):
    """If an entry fails, all fail."""

    def change(self, outcomes: Sequence[Outcome]) -> Sequence[Outcome]:
        error = next((each for _, each in outcomes if isinstance(each, SimulatorError)), None)
        return [(position, error or outcome) for position, outcome in outcomes]


class OneErrorRefusesTheBatch(ChangesBatches):
    """Refuses a batch with a malformed entry as a whole."""

    def change(self, reads: Reads) -> Reads:
        for read in reads:
            read()
        return reads


class StopsAtTheFirstError(ChangesOutcomes):
    """Answers only the entries before the first that fails."""

    def change(self, outcomes: Sequence[Outcome]) -> Sequence[Outcome]:
        failed = [position for position, each in outcomes if isinstance(each, SimulatorError)]
        return [(position, each) for position, each in outcomes if position < min(failed, default=1000)]


class OmitsErrors(ChangesOutcomes):
    """Leaves out the entries that fail."""

    def change(self, outcomes: Sequence[Outcome]) -> Sequence[Outcome]:
        return [each for each in outcomes if not isinstance(each[1], SimulatorError)]


class StaleIsBad(ChangesOutcomes):
    """Refuses a lower revision with an error that does not contain the current reservation."""

    def change(self, outcomes: Sequence[Outcome]) -> Sequence[Outcome]:
        bad = BadRequest("OLD", "too late")
        return [(position, bad if isinstance(each, RevisionTooLow) else each) for position, each in outcomes]


class ErrorsAreTransient(ChangesOutcomes):
    """Answers every error with UNAVAILABLE."""

    def change(self, outcomes: Sequence[Outcome]) -> Sequence[Outcome]:
        bad = CallFailed("something is wrong")
        return [(position, bad if isinstance(each, SimulatorError) else each) for position, each in outcomes]


class MixesUp(ChangesOutcomes):
    """Answers entries with each other's decisions."""

    def change(self, outcomes: Sequence[Outcome]) -> Sequence[Outcome]:
        positions = [position for position, _ in outcomes]
        return [(positions[-1 - index], each) for index, (_, each) in enumerate(outcomes)]


class ForgetsBatches(ChangesOutcomes):
    """Does not remember the decisions of batches."""

    def change(self, outcomes: Sequence[Outcome]) -> Sequence[Outcome]:
        for _, each in outcomes:
            if isinstance(each, SimulatedReply):
                self._stock._reservations.pop(each.reservation.intent.reservation_id, None)
        return outcomes


class KeepsNothing(ChangesOutcomes):
    """Answers HELD, but gives the units back."""

    def change(self, outcomes: Sequence[Outcome]) -> Sequence[Outcome]:
        for _, each in outcomes:
            if isinstance(each, SimulatedReply):
                self._stock._held[each.reservation.sku] -= each.reservation.granted
        return outcomes


class KeepsReleased(ChangesOutcomes):
    """Answers RELEASED, but keeps the units."""

    def change(self, outcomes: Sequence[Outcome]) -> Sequence[Outcome]:
        for _, each in outcomes:
            if isinstance(each, SimulatedReply) and each.reservation.intent.disposition is Disposition.RELEASE:
                self._stock._held[each.reservation.sku] += 1
        return outcomes


class SmallBatches(ChangesBatches):
    """Refuses more than 50 entries."""

    def change(self, reads: Reads) -> Reads:
        if len(reads) > 50:
            raise BadRequest("TOO_MANY", "at most 50 entries")
        return reads


class CutsBatches(ChangesBatches):
    """Ignores all but the first 50 entries."""

    def change(self, reads: Reads) -> Reads:
        return reads[:50]


class Races(Simulator):
    """Decides two concurrent copies of an entry independently."""

    async def apply_batch(self, reads: Reads) -> Outcomes:
        unknown = [read().reservation_id for read in reads]
        unknown = [each for each in unknown if self._stock.find(each, self._clock()) is None]
        await asyncio.sleep(0.02)
        for reservation_id in unknown:
            self._stock._reservations.pop(reservation_id, None)
        async with aclosing(super().apply_batch(reads)) as ready:
            async for outcomes in ready:
                yield outcomes


class WaitsForTheSlowest(Simulator):
    """Answers when all entries are decided."""

    async def apply_batch(self, reads: Reads) -> Outcomes:
        yield [outcome async for outcomes in super().apply_batch(reads) for outcome in outcomes]
