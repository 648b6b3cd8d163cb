"""Reservation APIs that break one rule each: the simulator, with that rule taken out."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

from cart_grpc.protocol.reservation import FINAL, Disposition, Intent, Observed
from cart_grpc.simulator import rules
from cart_grpc.simulator.errors import BadRequest, BodyMismatch, RevisionTooLow, UnknownReservation
from cart_grpc.simulator.rules import StoredReservation
from cart_grpc.simulator.simulator import SimulatedReply, Simulator
from cart_grpc.simulator.stock import Decided, Entry, Stock


class DecidesAgain(Stock):
    """A repeated message is a new decision."""

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        record = super().apply(intent, now, sold_out=sold_out)
        if record.state is Observed.HELD:
            record = replace(record, expire_time=max(now + intent.ttl_us, record.expire_time or 0))
            self._write(Decided(now, record))
        return record


class ReservesAgain(Stock):
    """A repeated message is answered as before, and takes as much again."""

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        known = self._reservations.get(intent.reservation_id)
        record = super().apply(intent, now, sold_out=sold_out)
        if known is record:
            self._held[intent.sku] += record.granted
        return record


class IgnoresTheBody(Stock):
    """The same revision with another body is answered, and the body not looked at."""

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        try:
            return super().apply(intent, now, sold_out=sold_out)
        except BodyMismatch:
            return self._reservations[intent.reservation_id]


class ObeysTheBody(Stock):
    """The same revision with another body is a change."""

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        before = self._reservations.get(intent.reservation_id)
        if before and before.intent.revision == intent.revision and before.intent != intent:
            self._reservations[intent.reservation_id] = replace(before, intent=replace(before.intent, revision=0))
        return super().apply(intent, now, sold_out=sold_out)


class RefusesAndObeysTheBody(Stock):
    """The same revision with another body is refused, but takes more all the same."""

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        try:
            return super().apply(intent, now, sold_out=sold_out)
        except BodyMismatch:
            self._held[intent.sku] += 1
            raise


class LastWins(Stock):
    """Whatever arrives last is done: revisions mean nothing."""

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        before = self._reservations.get(intent.reservation_id)
        if before and before.intent.revision > intent.revision and before.state not in FINAL:
            self._reservations[intent.reservation_id] = replace(before, intent=replace(before.intent, revision=0))
        return super().apply(intent, now, sold_out=sold_out)


class StaleIsBad(Stock):
    """A lower revision is refused as an error that does not tell what is current."""

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        try:
            return super().apply(intent, now, sold_out=sold_out)
        except RevisionTooLow:
            raise BadRequest("OLD", "too late") from None


class SmallRevisions(Stock):
    """A revision is an int32."""

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        if intent.revision >= 2**31:
            raise BadRequest("INVALID_FIELD", "revision: it is an int32")
        return super().apply(intent, now, sold_out=sold_out)


class NeverShrinks(Stock):
    """A hold that is made smaller is answered so, and keeps what it had."""

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        before = self._reservations.get(intent.reservation_id)
        record = super().apply(intent, now, sold_out=sold_out)
        if before and record.state is Observed.HELD and record.granted < before.granted:
            self._held[intent.sku] += before.granted - record.granted
        return record


class NeverGrows(Stock):
    """A hold that is made larger is answered so, and takes no more than it had."""

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        before = self._reservations.get(intent.reservation_id)
        record = super().apply(intent, now, sold_out=sold_out)
        if before and record is not before and before.state is record.state is Observed.HELD:
            self._held[intent.sku] -= max(0, record.granted - before.granted)
        return record


class KnowsNoUnseenRelease(Stock):
    """RELEASE of an id never seen is NOT_FOUND."""

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        if intent.disposition is Disposition.RELEASE and intent.reservation_id not in self._reservations:
            raise UnknownReservation
        return super().apply(intent, now, sold_out=sold_out)


class ForgetsReleases(Stock):
    """A RELEASE of an id never seen is answered, and leaves no memory."""

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        known = intent.reservation_id in self._reservations
        record = super().apply(intent, now, sold_out=sold_out)
        if not known and record.state is Observed.RELEASED:
            del self._reservations[intent.reservation_id]
        return record


class RefusesAndTakes(Stock):
    """A HOLD that comes after its RELEASE is refused, and takes stock all the same."""

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        try:
            return super().apply(intent, now, sold_out=sold_out)
        except RevisionTooLow as stale:
            if stale.current.state is Observed.RELEASED:
                self._held[intent.sku] += intent.quantity
            raise


class RefusedLoses(Stock):
    """A change that is refused costs what was held."""

    def _write(self, entry: Entry) -> None:
        if isinstance(entry, Decided) and entry.reservation.state is Observed.REJECTED:
            entry = replace(entry, reservation=replace(entry.reservation, granted=0, expire_time=None))
        super()._write(entry)

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        super().apply(intent, now, sold_out=sold_out)
        return self._reservations[intent.reservation_id]


class RefusedRunsOut(Stock):
    """A renewal that is refused does not extend what is held."""

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        before = self._reservations.get(intent.reservation_id)
        record = super().apply(intent, now, sold_out=sold_out)
        if before and before.granted and record.state is Observed.REJECTED:
            record = replace(record, expire_time=before.expire_time)
            self._write(Decided(now, record))
        return record


class SoldOutIsAnError(Stock):
    """Out of stock is an error, and so not remembered."""

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        before = self._reservations.get(intent.reservation_id)
        held = before.granted if before else 0
        free = self._find_available(intent.sku) or 0
        if intent.disposition is Disposition.HOLD and intent.quantity - held > free:
            raise BadRequest("OUT_OF_STOCK", "there are not as many")
        return super().apply(intent, now, sold_out=sold_out)


class ForgetsRejections(Stock):
    """What was rejected is decided anew when it is asked again."""

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        before = self._reservations.get(intent.reservation_id)
        if before and before.state is Observed.REJECTED and not before.granted and intent == before.intent:
            del self._reservations[intent.reservation_id]
        return super().apply(intent, now, sold_out=sold_out)


class ReleasedComesBack(Stock):
    """A HOLD under a higher revision takes stock after a RELEASE."""

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        before = self._reservations.get(intent.reservation_id)
        if before and before.state is Observed.RELEASED and intent.revision > before.intent.revision:
            del self._reservations[intent.reservation_id]
        return super().apply(intent, now, sold_out=sold_out)


class SoldComesBack(Stock):
    """A RELEASE undoes a sale."""

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        before = self._reservations.get(intent.reservation_id)
        release = intent.disposition is Disposition.RELEASE
        if before and before.state is Observed.COMMITTED and release and intent.revision > before.intent.revision:
            self._reservations[intent.reservation_id] = replace(before, state=Observed.HELD)
        return super().apply(intent, now, sold_out=sold_out)


class RefusesLateSales(Stock):
    """COMMIT of a hold that ran out is rejected though the stock is there."""

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        before = self._reservations.get(intent.reservation_id)
        if before and before.state is Observed.EXPIRED and intent.disposition is Disposition.COMMIT:
            record = StoredReservation(intent, Observed.REJECTED, intent.sku, 0, intent.revision, None, "EXPIRED")
            self._write(Decided(now, record))
            return record
        return super().apply(intent, now, sold_out=sold_out)


class ExpiresEarly(Stock):
    """A hold ends when half its time is over."""

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        before = self._reservations.get(intent.reservation_id)
        if before and before.expire_time and before.expire_time - now < before.intent.ttl_us / 2:
            self._write(Decided(now, rules.expire(before)))
        return super().apply(intent, now, sold_out=sold_out)


class ForgetsExpired(Stock):
    """What has run out was never there."""

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        before = self.find(intent.reservation_id, now)
        if before and before.state is Observed.EXPIRED and intent.revision != before.intent.revision:
            del self._reservations[intent.reservation_id]
        return super().apply(intent, now, sold_out=sold_out)


class RenewalShortens(Stock):
    """A renewal for a shorter time takes back what was promised."""

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        known = self._reservations.get(intent.reservation_id)
        record = super().apply(intent, now, sold_out=sold_out)
        if record is not known and record.state is Observed.HELD:
            record = replace(record, expire_time=now + intent.ttl_us)
            self._write(Decided(now, record))
        return record


class TooOldForNow(Stock):
    """A HOLD of an old id is rejected, but not for good."""

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        hold = intent.disposition is Disposition.HOLD
        return super().apply(intent, now, sold_out=sold_out or (hold and is_old(intent, now) and intent.revision == 1))


class OldIsAnError(Stock):
    """Even a RELEASE of an old id is refused."""

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        if is_old(intent, now) and intent.reservation_id not in self._reservations:
            raise BadRequest("TOO_OLD", "the id is too old")
        return super().apply(intent, now, sold_out=sold_out)


class Forgetful(Stock):
    """Not broken: it has a watermark, as rule 7 allows."""

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        if not is_old(intent, now):
            return super().apply(intent, now, sold_out=sold_out)
        if intent.disposition is Disposition.RELEASE:
            return StoredReservation(intent, Observed.RELEASED, intent.sku, 0, intent.revision, None, "")
        return StoredReservation(intent, Observed.REJECTED, intent.sku, 0, intent.revision, None, "TOO_OLD")


class Races(Simulator):
    """Two copies that arrive at once do not see each other."""

    async def apply(self, read: Callable[[], Intent]) -> SimulatedReply:
        intent = read()
        if self._stock.find(intent.reservation_id, self._clock()) is None:
            await asyncio.sleep(0.02)
            self._stock._reservations.pop(intent.reservation_id, None)
        return await super().apply(read)


class ReadsNothing(Simulator):
    """Reads know of no reservation."""

    def get(self, reservation_id: str) -> StoredReservation:
        raise UnknownReservation


def is_old(intent: Intent, now: int) -> bool:
    """Whether the UUIDv7 was made more than a year before `now`."""
    made = int(intent.reservation_id.replace("-", "")[:12], 16)
    return made < now // 1000 - 365 * 24 * 3600 * 1000
