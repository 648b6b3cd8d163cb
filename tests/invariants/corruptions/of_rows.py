"""Corruptions of rows and claims, and of quiescence."""

import random
from dataclasses import replace
from typing import Any

from cart_grpc.carts.model import ENDED, Cart, CartState
from cart_grpc.protocol.reservation import FINAL, Disposition, Observed, Reservation
from tests.invariants.corruptions.registry import must_report, pick, with_row
from tests.invariants.history import ClaimAction, ClaimEvent, RowVersion
from tests.invariants.rows import RISING
from tests.invariants.run import Run


@must_report("has no decision on its latest revision")
def a_row_is_not_settled(run: Run, rng: random.Random) -> Run:
    row = pick(rng, run.dump.reservations)
    return with_row(run, row, revision=row.revision + 1)


@must_report("is still waiting")
def a_row_is_waiting_forever(run: Run, rng: random.Random) -> Run:
    row = pick(rng, run.dump.reservations)
    return with_row(run, row, waiting=True)


@must_report("is settled, but still claimed")
def a_claim_is_left(run: Run, rng: random.Random) -> Run:
    row = pick(rng, run.dump.reservations)
    return with_row(run, row, lease_expire_time=run.now)


@must_report("is due, but has nothing to renew")
def a_row_is_due_for_nothing(run: Run, rng: random.Random) -> Run:
    row = pick(rng, (row for row in run.dump.reservations if not row.granted_quantity))
    return with_row(run, row, due_time=run.now)


def _written_again(run: Run, row: Cart | Reservation, **changes: Any) -> Run:
    return replace(run, written=[*run.written, RowVersion(run.now, row._replace(**changes))])


@must_report("of id-.* fell from")
def a_column_of_a_reservation_decreases(run: Run, rng: random.Random) -> Run:
    row = pick(rng, (row for row in run.dump.reservations if row.lease_epoch))
    column = rng.choice(RISING)
    return _written_again(run, row, **{column: getattr(row, column) - 1})


@must_report("of users/.* fell from")
def a_column_of_a_cart_decreases(run: Run, rng: random.Random) -> Run:
    cart = pick(rng, run.dump.carts)
    column = rng.choice(("revision", "etag_revision"))
    return _written_again(run, cart, **{column: getattr(cart, column) - 1})


@must_report("was (EXPIRED|DELETED) and became ACTIVE")
def an_ended_cart_opens_again(run: Run, rng: random.Random) -> Run:
    cart = pick(rng, (cart for cart in run.dump.carts if cart.state in ENDED))
    return _written_again(run, cart, state=CartState.ACTIVE)


@must_report("left the final state RELEASED for HELD")
def a_final_state_is_left(run: Run, rng: random.Random) -> Run:
    row = pick(rng, (row for row in run.dump.reservations if row.state in FINAL))
    return _written_again(run, row, state=Observed.HELD)


@must_report("changed its intent after RELEASE")
def a_release_is_taken_back(run: Run, rng: random.Random) -> Run:
    row = pick(rng, (row for row in run.dump.reservations if row.disposition is Disposition.RELEASE))
    return _written_again(run, row, disposition=Disposition.HOLD)


def _claimed_again(run: Run, rng: random.Random, epochs: int, action: ClaimAction, **changes: Any) -> Run:
    """The run with `action` of another replica right after a claim, under an epoch that is higher by `epochs`."""
    event = pick(rng, (event for event in run.claims if event.action is ClaimAction.CLAIMED))
    other = replace(event, epoch=event.epoch + epochs, owner="another", action=action, **changes)
    at = run.claims.index(event) + 1
    return replace(run, claims=[*run.claims[:at], other, *run.claims[at:]])


@must_report("does not raise epoch")
def an_epoch_is_used_twice(run: Run, rng: random.Random) -> Run:
    return _claimed_again(run, rng, 0, ClaimAction.CLAIMED)


@must_report("has a claim until .*, but another claim began")
def two_replicas_have_a_claim_at_once(run: Run, rng: random.Random) -> Run:
    return _claimed_again(run, rng, 1, ClaimAction.CLAIMED)


@must_report("but this was accepted: .*RECORDED")
def an_overtaken_replica_writes_the_bookkeeping(run: Run, rng: random.Random) -> Run:
    return _claimed_again(run, rng, -1, ClaimAction.RECORDED, lease_expire_time=None)


@must_report("but this was accepted: .*EXTENDED")
def another_replica_extends_a_claim(run: Run, rng: random.Random) -> Run:
    return _claimed_again(run, rng, 0, ClaimAction.EXTENDED)


@must_report("but this was accepted: .*HANDED_BACK")
def a_replica_hands_back_a_claim_that_it_does_not_have(run: Run, rng: random.Random) -> Run:
    return _claimed_again(run, rng, -1, ClaimAction.HANDED_BACK, lease_expire_time=None)


@must_report("but this was accepted: .*RECORDED")
def a_claim_that_a_caller_ended_writes_the_bookkeeping(run: Run, rng: random.Random) -> Run:
    event = pick(rng, (event for event in run.claims if event.action is ClaimAction.OVERTAKEN))
    late = ClaimEvent(event.time, event.reservation_id, event.epoch - 1, "replica-0", ClaimAction.RECORDED)
    at = run.claims.index(event) + 1
    return replace(run, claims=[*run.claims[:at], late, *run.claims[at:]])
