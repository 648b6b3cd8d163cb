"""The invariants of the protocol: about stock, rows and what callers see, in every state and at every step."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from cart_grpc.carts.model import Checkout, CheckoutState
from cart_grpc.carts.progress import Progress, ProgressState
from cart_grpc.protocol import transitions
from cart_grpc.protocol.reservation import FINAL, Answer, Decision, Disposition, Intent, NoAnswer, Observed, Reservation
from cart_grpc.simulator.rules import StoredReservation
from tests.protocol import api_rules, service_rules
from tests.protocol.states import STOCK, TICK, lapsed

TWO_LIVE = "two live reservations for one item"
OVERSOLD = "more is held and sold than exists"
BLOCKED_BY_OWN_HOLD = "our own older hold caused the rejection"
LEAKED = "a released reservation still holds stock"
SOLD_AFTER_REMOVAL = "a removed item was sold"
STRANDED = "an unsettled row is never due"
OVERSTATED = "callers see more as reserved than is held"
UNDERSTATED = "a rejected item holds more than callers see"
LATE_EFFECT = "a late message can still change a rejected item"
DECREASED = "a revision decreased"
FINAL_CHANGED = "a final state changed"
CLAIM_VISIBLE = "callers see a renewal"
NO_ALARM = "an unwanted sale raised no alarm"
SOLD_TWICE = "a unit was sold twice"
SOLD_LATE = "a checkout was completed after its window"
SOLD_OTHERWISE = "a checkout is COMPLETED, but the API has not sold its items"
SOLD_FROM_CART = "an item that is in a cart was sold"
READY_TOO_SOON = "a checkout is ready, but a hold does not outlast its window"
STILL_IN_CHECKOUT = "a hold of an open cart still has a checkout or its ttl"
FAILED_IN_VAIN = "a checkout failed although every hold outlasted its window"
INTENT_AFTER_COMMIT = "another intent follows COMMIT before the COMMIT is refused"
TWO_TTLS = "one revision was sent with two ttls"
FORBIDDEN = "a checkout changes a reservation as the protocol forbids"
PARTLY_SOLD = "one item of a checkout was sold without the other"

Records = Sequence[StoredReservation | None]


def check_stock(rows: Sequence[Reservation], records: Records, elsewhere: int) -> Iterator[str]:
    """Yield the violations about one item's stock. `rows` and `records` belong to its ids, oldest first."""
    granted = [record.granted if record else 0 for record in records]
    if sum(record is not None and record.state is Observed.COMMITTED for record in records) > 1:
        yield SOLD_TWICE
    if sum(map(bool, granted)) > 1:
        yield TWO_LIVE
    if sum(granted) + elsewhere > STOCK:
        yield OVERSOLD
    for row, record in zip(rows, records, strict=True):
        released = row.disposition is Disposition.RELEASE
        if released and record and record.state is Observed.COMMITTED:
            if row.revision < service_rules.RESTORE_STRIDE:
                # After a restore the database may not know about the sale.
                yield SOLD_AFTER_REMOVAL
        elif released and row.settled and record and record.granted:
            yield LEAKED
        if row.due_time is None and not (row.settled or row.waiting):
            yield STRANDED


def check_shown(
    row: Reservation, shown: Progress, record: StoredReservation | None, sent: Iterable[Intent], free: int
) -> Iterator[str]:
    """Yield the violations about what callers see of an item in the cart. `free` is the stock that it can get."""
    held = record.granted if record else 0
    if shown.reserved_quantity > held:
        yield OVERSTATED
    if shown.state is not ProgressState.REJECTED or _is_being_renewed(row, record):
        return
    if record and shown.reserved_quantity != held and not lapsed(record.expire_time):
        yield UNDERSTATED
    for intent in sent:
        # A renewal asks for the rejected quantity again. It is not a late message.
        undecided = record is None or intent.revision > record.intent.revision
        if (
            undecided
            and intent.revision <= row.intent_revision
            and api_rules.decide(record, intent, free).granted != held
        ):
            yield LATE_EFFECT


def _is_being_renewed(row: Reservation, record: StoredReservation | None) -> bool:
    return record is not None and record.intent.revision > row.intent_revision


def check_checkout(checkout: Checkout | None, rows: Sequence[Reservation], records: Records) -> Iterator[str]:
    """Yield the violations about a checkout and the latest rows and records of its items; None: the cart is ACTIVE."""
    sold = [record.granted if record and record.state is Observed.COMMITTED else 0 for record in records]
    if checkout is None:
        for row, count in zip(rows, sold, strict=True):
            if count and row.revision < service_rules.RESTORE_STRIDE:
                yield SOLD_FROM_CART
            if not row.is_closed and (row.checkout_id or row.ttl_us != TICK):
                yield STILL_IN_CHECKOUT
    elif checkout.state is CheckoutState.OPEN and checkout.is_ready and checkout.expire_time:
        # If an operator has released a hold, the cart thaws, and the checkout cannot be completed.
        if not any(row.is_closed for row in rows) and not all(
            record and _outlasts(record, checkout.expire_time) for record in records
        ):
            yield READY_TOO_SOON
    elif checkout.state is CheckoutState.COMPLETED and not checkout.reason and sum(sold) != checkout.total_quantity:
        yield SOLD_OTHERWISE


def _outlasts(record: StoredReservation, end: int) -> bool:
    return bool(record.granted) and (record.expire_time is None or record.expire_time >= end)


def check_answer(row: Reservation, outcome: Answer | NoAnswer) -> str | None:
    """Find a violation: an answer about an unwanted sale must raise an alarm."""
    unwanted = row.disposition is not Disposition.COMMIT and row.state is not Observed.COMMITTED
    sold = isinstance(outcome, Decision) and outcome.state is Observed.COMMITTED
    return NO_ALARM if unwanted and sold and transitions.find_alarm(row, outcome) is None else None


def check_row(before: Reservation, after: Reservation) -> str | None:
    """Find a violation between two versions of a row."""
    for name in ("revision", "intent_revision", "observed_revision"):
        if getattr(after, name) < getattr(before, name):
            return DECREASED
    if before.frozen and after.disposition is not Disposition.COMMIT:
        return INTENT_AFTER_COMMIT
    return FINAL_CHANGED if before.state in FINAL and after.state is not before.state else None


def check_decision(
    before: StoredReservation | None, after: StoredReservation | None, intent: Intent, free: int
) -> str | None:
    """Find a violation in the API's decision on `intent`, with `free` pieces available."""
    if before is None:
        new = after
    else:
        if before.state in FINAL and (after is None or after.state is not before.state):
            return FINAL_CHANGED
        if intent != before.intent and replace(intent, ttl_us=before.intent.ttl_us) == before.intent:
            return TWO_TTLS
        new = after if after != before else None
    refused = new is not None and new.intent == intent and new.state is Observed.REJECTED
    return BLOCKED_BY_OWN_HOLD if refused and intent.quantity <= free else None


def check_claim(before: Reservation, after: Reservation, wanted: int) -> str | None:
    """Find a violation: callers must not see a claim."""
    seen = [(row.reconciling, service_rules.shown(row, wanted)) for row in (before, after)]
    return CLAIM_VISIBLE if wanted and seen[0] != seen[1] else None
