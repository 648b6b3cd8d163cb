"""Rows and claims that changed as they must not, and work that was left."""

import random
from dataclasses import replace
from typing import Any

from cart_grpc.carts.model import ENDED, Cart, CartState
from cart_grpc.protocol.reservation import FINAL, Disposition, Observed, Reservation
from tests.invariants.history import ClaimAction, ClaimEvent, Written
from tests.invariants.mutations.registry import pick, says, with_row
from tests.invariants.rows import RISING
from tests.invariants.run import Run


@says("was never answered for its last intent")
def a_row_is_not_settled(run: Run, numbers: random.Random) -> Run:
    row = pick(numbers, run.dump.reservations)
    return with_row(run, row, revision=row.revision + 1)


@says("waits for nothing")
def a_row_waits_for_ever(run: Run, numbers: random.Random) -> Run:
    row = pick(numbers, run.dump.reservations)
    return with_row(run, row, waiting=True)


@says("is settled, and still claimed")
def a_claim_is_left(run: Run, numbers: random.Random) -> Run:
    row = pick(numbers, run.dump.reservations)
    return with_row(run, row, lease_expire_time=run.now)


@says("is due, though it holds nothing")
def a_row_is_due_for_nothing(run: Run, numbers: random.Random) -> Run:
    row = pick(numbers, (row for row in run.dump.reservations if not row.granted_quantity))
    return with_row(run, row, due_time=run.now)


def _written_again(run: Run, row: Cart | Reservation, **changes: Any) -> Run:
    return replace(run, written=[*run.written, Written(run.now, row._replace(**changes))])


@says("of id-.* fell from")
def a_reservations_number_falls(run: Run, numbers: random.Random) -> Run:
    row = pick(numbers, (row for row in run.dump.reservations if row.lease_epoch))
    column = numbers.choice(RISING)
    return _written_again(run, row, **{column: getattr(row, column) - 1})


@says("of users/.* fell from")
def a_carts_number_falls(run: Run, numbers: random.Random) -> Run:
    cart = pick(numbers, run.dump.carts)
    column = numbers.choice(("revision", "etag_revision"))
    return _written_again(run, cart, **{column: getattr(cart, column) - 1})


@says("was (EXPIRED|DELETED) and became ACTIVE")
def an_ended_cart_opens_again(run: Run, numbers: random.Random) -> Run:
    cart = pick(numbers, (cart for cart in run.dump.carts if cart.state in ENDED))
    return _written_again(run, cart, state=CartState.ACTIVE)


@says("was RELEASED for good and became HELD")
def a_final_state_is_left(run: Run, numbers: random.Random) -> Run:
    row = pick(numbers, (row for row in run.dump.reservations if row.state in FINAL))
    return _written_again(run, row, state=Observed.HELD)


@says("was to be released, and is to be kept")
def a_release_is_taken_back(run: Run, numbers: random.Random) -> Run:
    row = pick(numbers, (row for row in run.dump.reservations if row.disposition is Disposition.RELEASE))
    return _written_again(run, row, disposition=Disposition.HOLD)


def _claimed_again(run: Run, numbers: random.Random, epochs: int, action: ClaimAction, **changes: Any) -> Run:
    """Right after a claim, something by another replica under an epoch that is so much higher."""
    event = pick(numbers, (event for event in run.claims if event.action is ClaimAction.CLAIMED))
    other = replace(event, epoch=event.epoch + epochs, owner="another", action=action, **changes)
    at = run.claims.index(event) + 1
    return replace(run, claims=[*run.claims[:at], other, *run.claims[at:]])


@says("does not raise it")
def an_epoch_is_used_twice(run: Run, numbers: random.Random) -> Run:
    return _claimed_again(run, numbers, 0, ClaimAction.CLAIMED)


@says("has a claim until .*, and there is another")
def two_have_a_claim_at_once(run: Run, numbers: random.Random) -> Run:
    return _claimed_again(run, numbers, 1, ClaimAction.CLAIMED)


@says("and this was accepted: .*RECORDED")
def a_replica_that_was_overtaken_records(run: Run, numbers: random.Random) -> Run:
    return _claimed_again(run, numbers, -1, ClaimAction.RECORDED, lease_expire_time=None)


@says("and this was accepted: .*EXTENDED")
def another_replica_extends_a_claim(run: Run, numbers: random.Random) -> Run:
    return _claimed_again(run, numbers, 0, ClaimAction.EXTENDED)


@says("and this was accepted: .*HANDED_BACK")
def a_replica_hands_back_what_it_does_not_have(run: Run, numbers: random.Random) -> Run:
    return _claimed_again(run, numbers, -1, ClaimAction.HANDED_BACK, lease_expire_time=None)


@says("and this was accepted: .*RECORDED")
def a_claim_that_a_caller_took_away_is_recorded(run: Run, numbers: random.Random) -> Run:
    event = pick(numbers, (event for event in run.claims if event.action is ClaimAction.OVERTAKEN))
    late = ClaimEvent(event.time, event.reservation_id, event.epoch - 1, "replica-0", ClaimAction.RECORDED)
    at = run.claims.index(event) + 1
    return replace(run, claims=[*run.claims[:at], late, *run.claims[at:]])
