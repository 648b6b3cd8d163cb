"""Reservation APIs that break one rule each: the simulator without that rule."""

from dataclasses import replace

from cart_grpc.protocol.reservation import FINAL, Disposition, Intent, Observed
from cart_grpc.simulator import rules
from cart_grpc.simulator.errors import BadRequest, BodyMismatch, RevisionTooLow, UnknownReservation
from cart_grpc.simulator.rules import StoredReservation
from cart_grpc.simulator.stock import Decided, Entry, Stock


class DecidesAgain(Stock):
    """Decides a repeated message again."""

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        stored = super().apply(intent, now, sold_out=sold_out)
        if stored.state is Observed.HELD:
            stored = replace(stored, expire_time=max(now + intent.ttl_us, stored.expire_time or 0))
            self._write(Decided(now, stored))
        return stored


class ReservesAgain(Stock):
    """Answers a repeated message as before, but takes the units again."""

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        known = self._reservations.get(intent.reservation_id)
        stored = super().apply(intent, now, sold_out=sold_out)
        if known is stored:
            self._held[intent.sku] += stored.granted
        return stored


class IgnoresTheBody(Stock):
    """Answers the same revision with a different body, and ignores the body."""

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        try:
            return super().apply(intent, now, sold_out=sold_out)
        except BodyMismatch:
            return self._reservations[intent.reservation_id]


class ObeysTheBody(Stock):
    """Applies the same revision with a different body."""

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        before = self._reservations.get(intent.reservation_id)
        if before and before.intent.revision == intent.revision and before.intent != intent:
            self._reservations[intent.reservation_id] = replace(before, intent=replace(before.intent, revision=0))
        return super().apply(intent, now, sold_out=sold_out)


class RefusesAndObeysTheBody(Stock):
    """Refuses the same revision with a different body, but takes a unit."""

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        try:
            return super().apply(intent, now, sold_out=sold_out)
        except BodyMismatch:
            self._held[intent.sku] += 1
            raise


class ComparesLabels(Stock):
    """Takes other labels for another body."""

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        before = self._reservations.get(intent.reservation_id)
        if before and before.intent == intent and before.intent.labels != intent.labels:
            raise BodyMismatch(intent.revision)
        return super().apply(intent, now, sold_out=sold_out)


class ComparesQuantitiesOnly(Stock):
    """Answers the same revision with a different sku or ttl as if it were the same."""

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        before = self._reservations.get(intent.reservation_id)
        if before and before.intent.revision == intent.revision:
            intent = replace(intent, sku=before.intent.sku, ttl_us=before.intent.ttl_us)
        return super().apply(intent, now, sold_out=sold_out)


class LastWins(Stock):
    """Applies every message in order of arrival and ignores revisions."""

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        before = self._reservations.get(intent.reservation_id)
        if before and before.intent.revision > intent.revision and before.state not in FINAL:
            self._reservations[intent.reservation_id] = replace(before, intent=replace(before.intent, revision=0))
        return super().apply(intent, now, sold_out=sold_out)


class StaleIsBad(Stock):
    """Refuses a lower revision with an error that does not contain the current reservation."""

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        try:
            return super().apply(intent, now, sold_out=sold_out)
        except RevisionTooLow:
            raise BadRequest("OLD", "too late") from None


class SmallRevisions(Stock):
    """Stores revisions as int32."""

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        if intent.revision >= 2**31:
            raise BadRequest("INVALID_FIELD", "revision must be an int32")
        return super().apply(intent, now, sold_out=sold_out)


class NeverShrinks(Stock):
    """Answers a smaller hold as granted, but keeps the units of the larger one."""

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        before = self._reservations.get(intent.reservation_id)
        stored = super().apply(intent, now, sold_out=sold_out)
        if before and stored.state is Observed.HELD and stored.granted < before.granted:
            self._held[intent.sku] += before.granted - stored.granted
        return stored


class NeverGrows(Stock):
    """Answers a larger hold as granted, but takes no more units."""

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        before = self._reservations.get(intent.reservation_id)
        stored = super().apply(intent, now, sold_out=sold_out)
        if before and stored is not before and before.state is stored.state is Observed.HELD:
            self._held[intent.sku] -= max(0, stored.granted - before.granted)
        return stored


class KnowsNoUnseenRelease(Stock):
    """Answers RELEASE of an unknown id with NOT_FOUND."""

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        if intent.disposition is Disposition.RELEASE and intent.reservation_id not in self._reservations:
            raise UnknownReservation
        return super().apply(intent, now, sold_out=sold_out)


class ForgetsReleases(Stock):
    """Answers RELEASE of an unknown id, but does not remember it."""

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        known = intent.reservation_id in self._reservations
        stored = super().apply(intent, now, sold_out=sold_out)
        if not known and stored.state is Observed.RELEASED:
            del self._reservations[intent.reservation_id]
        return stored


class RefusesAndTakes(Stock):
    """Refuses a HOLD that arrives after its RELEASE, but takes the units."""

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        try:
            return super().apply(intent, now, sold_out=sold_out)
        except RevisionTooLow as stale:
            if stale.current.state is Observed.RELEASED:
                self._held[intent.sku] += intent.quantity
            raise


class RefusedLoses(Stock):
    """Drops the hold if it refuses a change."""

    def _write(self, entry: Entry) -> None:
        if isinstance(entry, Decided) and entry.reservation.state is Observed.REJECTED:
            entry = replace(entry, reservation=replace(entry.reservation, granted=0, expire_time=None))
        super()._write(entry)

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        super().apply(intent, now, sold_out=sold_out)
        return self._reservations[intent.reservation_id]


class RefusedRunsOut(Stock):
    """Does not extend the hold if it refuses a renewal."""

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        before = self._reservations.get(intent.reservation_id)
        stored = super().apply(intent, now, sold_out=sold_out)
        if before and before.granted and stored.state is Observed.REJECTED:
            stored = replace(stored, expire_time=before.expire_time)
            self._write(Decided(now, stored))
        return stored


class SoldOutIsAnError(Stock):
    """Answers out of stock with an error, which it does not remember."""

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        before = self._reservations.get(intent.reservation_id)
        held = before.granted if before else 0
        available = self._find_available(intent.sku) or 0
        if intent.disposition is Disposition.HOLD and intent.quantity - held > available:
            raise BadRequest("OUT_OF_STOCK", "not enough units")
        return super().apply(intent, now, sold_out=sold_out)


class ForgetsRejections(Stock):
    """Decides a repeated rejected message again."""

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        before = self._reservations.get(intent.reservation_id)
        if before and before.state is Observed.REJECTED and not before.granted and intent == before.intent:
            del self._reservations[intent.reservation_id]
        return super().apply(intent, now, sold_out=sold_out)


class ReleasedComesBack(Stock):
    """Holds units for a higher revision after a RELEASE."""

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        before = self._reservations.get(intent.reservation_id)
        if before and before.state is Observed.RELEASED and intent.revision > before.intent.revision:
            del self._reservations[intent.reservation_id]
        return super().apply(intent, now, sold_out=sold_out)


class ExpiresEarly(Stock):
    """Expires a hold at half its time."""

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        before = self._reservations.get(intent.reservation_id)
        if before and before.expire_time and before.expire_time - now < before.intent.ttl_us / 2:
            self._write(Decided(now, rules.expire(before)))
        return super().apply(intent, now, sold_out=sold_out)


class ForgetsExpired(Stock):
    """Forgets a reservation when its hold expires."""

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        before = self.find(intent.reservation_id, now)
        if before and before.state is Observed.EXPIRED and intent.revision != before.intent.revision:
            del self._reservations[intent.reservation_id]
        return super().apply(intent, now, sold_out=sold_out)


class RenewalShortens(Stock):
    """Shortens a hold on a renewal with a shorter ttl."""

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        known = self._reservations.get(intent.reservation_id)
        stored = super().apply(intent, now, sold_out=sold_out)
        if stored is not known and stored.state is Observed.HELD:
            stored = replace(stored, expire_time=now + intent.ttl_us)
            self._write(Decided(now, stored))
        return stored


class TooOldForNow(Stock):
    """Rejects revision 1 of an old id, but accepts the next."""

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        hold = intent.disposition is Disposition.HOLD
        return super().apply(intent, now, sold_out=sold_out or (hold and is_old(intent, now) and intent.revision == 1))


class OldIsAnError(Stock):
    """Refuses even a RELEASE of an old id."""

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        if is_old(intent, now) and intent.reservation_id not in self._reservations:
            raise BadRequest("TOO_OLD", "the id is too old")
        return super().apply(intent, now, sold_out=sold_out)


class Forgetful(Stock):
    """Keeps the contract: has a watermark, as rule 7 allows."""

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        if not is_old(intent, now):
            return super().apply(intent, now, sold_out=sold_out)
        if intent.disposition is Disposition.RELEASE:
            return StoredReservation(intent, Observed.RELEASED, intent.sku, 0, intent.revision, None, "")
        return StoredReservation(intent, Observed.REJECTED, intent.sku, 0, intent.revision, None, "TOO_OLD")


def is_old(intent: Intent, now: int) -> bool:
    """Whether the UUIDv7 was made more than a year before `now`."""
    made = int(intent.reservation_id.replace("-", "")[:12], 16)
    return made < now // 1000 - 365 * 24 * 3600 * 1000
