"""Decides about one reservation: rules 2 to 5 of `cartgrpc.reservation.v1` as pure functions.

Rule 7 does not apply: the simulator never forgets a reservation.
"""

from dataclasses import dataclass, replace

from cart_grpc.protocol.reservation import FINAL, Disposition, Intent, Observed


@dataclass(frozen=True, slots=True)
class StoredReservation:
    """A reservation as the simulator remembers it.

    `intent` is the message of the highest revision that was decided, and `state` the decision. `granted` units of `sku`
    are held until `expire_time` (microseconds; None if nothing is held or the hold has no end), or sold if `state` is
    COMMITTED. `granted_revision` is the revision that granted them. `reason` says why `state` is REJECTED.
    """

    intent: Intent
    state: Observed
    sku: str
    granted: int
    granted_revision: int
    expire_time: int | None
    reason: str


def decide(
    before: StoredReservation | None, intent: Intent, *, available: int | None, now: int, sold_out: bool = False
) -> StoredReservation:
    """Decide a revision that was never decided before.

    `before` is the reservation so far, with an expiry that is due already applied. `available` is the number of units
    of the sku that are neither held nor sold, None if the sku is unknown. `sold_out` refuses a HOLD or COMMIT.
    """
    if before is not None and before.state in FINAL:
        return replace(before, intent=intent)
    if intent.disposition is Disposition.RELEASE:
        sku = before.sku if before is not None and before.granted else intent.sku
        return StoredReservation(intent, Observed.RELEASED, sku, 0, intent.revision, None, "")
    refusal = _find_refusal(before, intent, available, sold_out=sold_out)
    if refusal is not None:
        return _refuse(before, intent, refusal, now)
    if intent.disposition is Disposition.COMMIT:
        return StoredReservation(intent, Observed.COMMITTED, intent.sku, intent.quantity, intent.revision, None, "")
    until = _extend(before, intent, now)
    return StoredReservation(intent, Observed.HELD, intent.sku, intent.quantity, intent.revision, until, "")


def expire(stored: StoredReservation) -> StoredReservation:
    """Return the reservation after its hold expired. A REJECTED revision stays REJECTED, with nothing held."""
    state = Observed.EXPIRED if stored.state is Observed.HELD else stored.state
    return replace(stored, state=state, granted=0, expire_time=None)


def _find_refusal(
    before: StoredReservation | None, intent: Intent, available: int | None, *, sold_out: bool
) -> str | None:
    held = before.granted if before is not None else 0
    if available is None:
        return "UNKNOWN_SKU"
    if before is not None and held and before.sku != intent.sku:
        return "SKU_CHANGED"
    if sold_out or intent.quantity - held > max(available, 0):
        return "OUT_OF_STOCK"
    return None


def _refuse(before: StoredReservation | None, intent: Intent, reason: str, now: int) -> StoredReservation:
    if before is None or before.granted == 0:
        return StoredReservation(intent, Observed.REJECTED, intent.sku, 0, intent.revision, None, reason)
    # Rule 3: a refused change keeps the hold, and a refused renewal extends it.
    until = _extend(before, intent, now) if intent.disposition is Disposition.HOLD else before.expire_time
    return replace(before, intent=intent, state=Observed.REJECTED, expire_time=until, reason=reason)


def _extend(before: StoredReservation | None, intent: Intent, now: int) -> int | None:
    """Return when the hold ends: never before the time that was answered (rule 5). None: `ttl_us` 0 has no end."""
    if intent.ttl_us == 0:
        return None
    promised = before.expire_time if before is not None else None
    return max(now + intent.ttl_us, promised or 0)
