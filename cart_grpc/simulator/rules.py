"""What is decided about one reservation: rules 2 to 5 of `cartgrpc.reservation.v1`, as pure functions.

Rule 7's watermark is not needed here: the simulator never forgets.
"""

from dataclasses import dataclass, replace

from cart_grpc.protocol.reservation import FINAL, Disposition, Intent, Observed


@dataclass(frozen=True, slots=True)
class Record:
    """All that is remembered of a reservation.

    `intent` is the message of the highest revision that was decided, and `state` what was decided about it.
    `granted` pieces of `sku` are held until `expire_time` (microseconds, None where nothing is held), or sold if
    `state` is COMMITTED; `granted_revision` is the revision that made it so many. `reason` says why it was REJECTED.
    """

    intent: Intent
    state: Observed
    sku: str
    granted: int
    granted_revision: int
    expire_time: int | None
    reason: str


def decide(before: Record | None, intent: Intent, *, free: int | None, now: int, sold_out: bool = False) -> Record:
    """Return what a revision never decided before comes to.

    `before` is the record so far, expired if it is due; `free` is how many pieces of the sku nobody has, None if there
    is no such sku; `sold_out` refuses whatever needs stock.
    """
    if before is not None and before.state in FINAL:
        return replace(before, intent=intent)
    if intent.disposition is Disposition.RELEASE:
        sku = before.sku if before is not None and before.granted else intent.sku
        return Record(intent, Observed.RELEASED, sku, 0, intent.revision, None, "")
    refusal = _find_refusal(before, intent, free, sold_out=sold_out)
    if refusal is not None:
        return _refuse(before, intent, refusal, now)
    if intent.disposition is Disposition.COMMIT:
        return Record(intent, Observed.COMMITTED, intent.sku, intent.quantity, intent.revision, None, "")
    return Record(intent, Observed.HELD, intent.sku, intent.quantity, intent.revision, _extend(before, intent, now), "")


def expire(record: Record) -> Record:
    """Return what becomes of a hold that ran out. A revision that was REJECTED stays so, with nothing held."""
    state = Observed.EXPIRED if record.state is Observed.HELD else record.state
    return replace(record, state=state, granted=0, expire_time=None)


def _find_refusal(before: Record | None, intent: Intent, free: int | None, *, sold_out: bool) -> str | None:
    held = before.granted if before is not None else 0
    if free is None:
        return "UNKNOWN_SKU"
    if before is not None and held and before.sku != intent.sku:
        return "SKU_CHANGED"
    if sold_out or intent.quantity - held > max(free, 0):
        return "OUT_OF_STOCK"
    return None


def _refuse(before: Record | None, intent: Intent, reason: str, now: int) -> Record:
    if before is None or before.granted == 0:
        return Record(intent, Observed.REJECTED, intent.sku, 0, intent.revision, None, reason)
    # A refused change must not cost what was held, nor a refused renewal let it run out.
    until = _extend(before, intent, now) if intent.disposition is Disposition.HOLD else before.expire_time
    return replace(before, intent=intent, state=Observed.REJECTED, expire_time=until, reason=reason)


def _extend(before: Record | None, intent: Intent, now: int) -> int | None:
    """A hold never ends before the time that was answered, whatever a later message asks for; without a ttl, never."""
    if intent.ttl_us == 0:
        return None
    promised = before.expire_time if before is not None else None
    return max(now + intent.ttl_us, promised or 0)
