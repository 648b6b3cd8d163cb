"""Reservation APIs that break one rule each about skus, sales or ttls: the simulator without that rule."""

from dataclasses import replace

from cart_grpc.protocol.reservation import FINAL, Disposition, Intent, Observed
from cart_grpc.simulator.errors import BadRequest
from cart_grpc.simulator.rules import StoredReservation
from cart_grpc.simulator.stock import Decided, Stock


class ExchangesTheSku(Stock):
    """Gives up a hold for one of another sku."""

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        before = self._reservations.get(intent.reservation_id)
        is_other = before and before.state is Observed.HELD and before.sku != intent.sku
        if not is_other or intent.revision <= before.intent.revision:  # type: ignore[union-attr]
            return super().apply(intent, now, sold_out=sold_out)
        until = now + intent.ttl_us
        stored = StoredReservation(intent, Observed.HELD, intent.sku, intent.quantity, intent.revision, until, "")
        self._write(Decided(now, stored))
        return stored


class KeepsTheFirstSku(Stock):
    """Rejects another sku for the same id, even if nothing is held."""

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        before = self._reservations.get(intent.reservation_id)
        is_change = before and before.state not in FINAL and intent.revision > before.intent.revision
        if before and is_change and intent.disposition is Disposition.HOLD and before.intent.sku != intent.sku:
            refused = replace(before, intent=intent, state=Observed.REJECTED, reason="SKU_CHANGED")
            self._write(Decided(now, refused))
            return refused
        return super().apply(intent, now, sold_out=sold_out)


class ReleasesOneSku(Stock):
    """Refuses RELEASE of another sku than is held."""

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        before = self._reservations.get(intent.reservation_id)
        if before and before.granted and intent.disposition is Disposition.RELEASE and before.sku != intent.sku:
            raise BadRequest("INVALID_FIELD", "sku must be the sku of the hold")
        return super().apply(intent, now, sold_out=sold_out)


class SellsAnotherSku(Stock):
    """Sells the units that are held, whatever sku COMMIT has."""

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        before = self._reservations.get(intent.reservation_id)
        if before and before.granted and intent.disposition is Disposition.COMMIT:
            stored = super().apply(replace(intent, sku=before.sku), now, sold_out=sold_out)
            return replace(stored, intent=intent)
        return super().apply(intent, now, sold_out=sold_out)


class SellsWhatIsHeld(Stock):
    """Sells the held quantity, whatever quantity COMMIT has."""

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        before = self._reservations.get(intent.reservation_id)
        if before and before.granted and intent.disposition is Disposition.COMMIT:
            intent = replace(intent, quantity=before.granted)
        return super().apply(intent, now, sold_out=sold_out)


class SellsNoMoreThanIsHeld(Stock):
    """Rejects COMMIT of more units than are held."""

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        before = self._reservations.get(intent.reservation_id)
        is_larger = before and 0 < before.granted < intent.quantity and before.intent.revision < intent.revision
        if before and is_larger and intent.disposition is Disposition.COMMIT:
            refused = replace(before, intent=intent, state=Observed.REJECTED, reason="TOO_MANY")
            self._write(Decided(now, refused))
            return refused
        return super().apply(intent, now, sold_out=sold_out)


class SellsOnlyHolds(Stock):
    """Rejects COMMIT of an unknown id although the units are available."""

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        if intent.disposition is Disposition.COMMIT and intent.reservation_id not in self._reservations:
            refused = StoredReservation(intent, Observed.REJECTED, intent.sku, 0, intent.revision, None, "NO_HOLD")
            self._write(Decided(now, refused))
            return refused
        return super().apply(intent, now, sold_out=sold_out)


class LosesTheHoldOfARefusedSale(Stock):
    """Drops the hold if it rejects COMMIT."""

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        stored = super().apply(intent, now, sold_out=sold_out)
        if intent.disposition is Disposition.COMMIT and stored.state is Observed.REJECTED:
            stored = replace(stored, granted=0, expire_time=None)
            self._write(Decided(now, stored))
        return stored


class SoldComesBack(Stock):
    """Undoes a sale on RELEASE."""

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        before = self._reservations.get(intent.reservation_id)
        release = intent.disposition is Disposition.RELEASE
        if before and before.state is Observed.COMMITTED and release and intent.revision > before.intent.revision:
            self._reservations[intent.reservation_id] = replace(before, state=Observed.HELD)
        return super().apply(intent, now, sold_out=sold_out)


class RefusesLateSales(Stock):
    """Rejects COMMIT of an expired hold although the units are available."""

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        before = self._reservations.get(intent.reservation_id)
        if before and before.state is Observed.EXPIRED and intent.disposition is Disposition.COMMIT:
            stored = StoredReservation(intent, Observed.REJECTED, intent.sku, 0, intent.revision, None, "EXPIRED")
            self._write(Decided(now, stored))
            return stored
        return super().apply(intent, now, sold_out=sold_out)


class CapsTheTtl(Stock):
    """Holds for an hour at most."""

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        return super().apply(replace(intent, ttl_us=min(intent.ttl_us, 3600_000_000)), now, sold_out=sold_out)


class HoldsForADay(Stock):
    """Holds for a day at most, which is less than a checkout asks for."""

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        day = 24 * 3600 * 1_000_000
        return super().apply(replace(intent, ttl_us=min(intent.ttl_us, day)), now, sold_out=sold_out)


class RefusesShortHolds(Stock):
    """Refuses a ttl below a minute."""

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        if intent.disposition is Disposition.HOLD and intent.ttl_us < 60_000_000:
            raise BadRequest("INVALID_FIELD", "ttl must be a minute or more")
        return super().apply(intent, now, sold_out=sold_out)


class IgnoresUnusedFields(Stock):
    """Compares only the fields that the disposition uses."""

    def apply(self, intent: Intent, now: int, *, sold_out: bool = False) -> StoredReservation:
        before = self._reservations.get(intent.reservation_id)
        is_release = intent.disposition is Disposition.RELEASE
        if before and is_release and intent.revision == before.intent.revision:
            intent = replace(intent, quantity=before.intent.quantity, ttl_us=before.intent.ttl_us)
        return super().apply(intent, now, sold_out=sold_out)
