"""Corruptions of reservations and stock."""

import random
from dataclasses import replace
from typing import Any

from cart_grpc.protocol.reservation import FINAL, Disposition, Observed, Reservation
from tests.invariants.corruptions.registry import must_report, pick, swap, with_dump, with_row
from tests.invariants.history import ApiEffect
from tests.invariants.run import Run


def _last(run: Run) -> dict[str, ApiEffect]:
    return {effect.reservation_id: effect for effect in run.effects}


def _held(run: Run, rng: random.Random) -> tuple[Reservation, ApiEffect]:
    """A row that is HELD in full, and its last effect. A sealed hold is shown as rejected already."""
    rows = {row.reservation_id: row for row in run.dump.reservations if not row.seal_reason}
    held = [(rows[name], one) for name, one in _last(run).items() if one.state is Observed.HELD and name in rows]
    return pick(rng, held)


def _more(run: Run, effect: ApiEffect, **changes: Any) -> Run:
    return replace(run, effects=[*run.effects, replace(effect, time=run.now, **changes)])


@must_report("has 2 live reservations")
def a_removed_item_still_holds_stock(run: Run, rng: random.Random) -> Run:
    found = _held(run, rng)
    row, effect = found
    other = row._replace(reservation_id="other", disposition=Disposition.RELEASE, state=Observed.RELEASED)
    run = with_dump(run, reservations=[*run.dump.reservations, other])
    return _more(run, effect, reservation_id="other")


@must_report("without an item")
def a_reservation_outlives_its_item(run: Run, rng: random.Random) -> Run:
    found = _held(run, rng)
    return with_dump(run, items=[item for item in run.dump.items if item.reservation_id != found[0].reservation_id])


@must_report("no answer and no row ever named phantom")
def a_reservation_is_decided_without_a_row(run: Run, rng: random.Random) -> Run:
    effect = pick(rng, run.effects)
    return _more(run, effect, reservation_id="phantom")


@must_report("the row of .* was deleted before its end")
def a_row_is_deleted_too_early(run: Run, rng: random.Random) -> Run:
    names = {name for name, effect in _last(run).items() if effect.state not in FINAL}
    row = pick(rng, (row for row in run.dump.reservations if row.reservation_id in names))
    return with_dump(run, reservations=[one for one in run.dump.reservations if one is not row])


@must_report("was made for .*, but has neither a row nor a decision")
def a_reservation_is_forgotten(run: Run, rng: random.Random) -> Run:
    row = pick(rng, run.dump.reservations)
    run = replace(run, effects=[effect for effect in run.effects if effect.reservation_id != row.reservation_id])
    return with_dump(run, reservations=[one for one in run.dump.reservations if one is not row])


@must_report("was never decided, but its row has a decision")
def a_row_observes_a_decision_that_was_never_made(run: Run, rng: random.Random) -> Run:
    row = pick(rng, run.dump.reservations)
    kept = [effect for effect in run.effects if effect.reservation_id != row.reservation_id]
    return replace(run, effects=kept)


@must_report("was used for .* and for")
def a_reservation_id_is_reused(run: Run, rng: random.Random) -> Run:
    row = pick(rng, run.dump.reservations)
    return with_row(run, row, item_id="0" * 32)


@must_report("is not settled")
def an_item_is_left_pending(run: Run, rng: random.Random) -> Run:
    found = _held(run, rng)
    return with_row(run, found[0], granted_quantity=0, intent_revision=found[0].revision + 1)


@must_report("shows .*, but the API has ")
def less_is_held_than_is_shown(run: Run, rng: random.Random) -> Run:
    found = _held(run, rng)
    return replace(
        run, effects=swap(run.effects, found[1], replace(found[1], granted_quantity=found[1].granted_quantity - 1))
    )


@must_report("shows .*, but the API has ")
def more_is_held_than_a_rejected_item_shows(run: Run, rng: random.Random) -> Run:
    rejected = [one for one in _last(run).values() if one.state is Observed.REJECTED]
    of_items = {item.reservation_id for item in run.dump.items}
    effect = pick(rng, (one for one in rejected if one.reservation_id in of_items))
    return replace(
        run, effects=swap(run.effects, effect, replace(effect, granted_quantity=effect.granted_quantity + 1))
    )


@must_report("shows .*, but the API has ")
def another_sku_is_held(run: Run, rng: random.Random) -> Run:
    found = _held(run, rng)
    return replace(run, effects=swap(run.effects, found[1], replace(found[1], sku="other")))


@must_report("was rejected without a valid reason")
def a_rejection_has_no_reason(run: Run, rng: random.Random) -> Run:
    found = _held(run, rng)
    return with_row(run, found[0], granted_quantity=0, state=Observed.REJECTED, reason="")


@must_report("is shown as rejected, but all of it is held")
def a_rejected_item_is_held_in_full(run: Run, rng: random.Random) -> Run:
    found = _held(run, rng)
    changes = {"granted_quantity": 0, "state": Observed.REJECTED, "reason": "OUT_OF_STOCK"}
    return with_row(run, found[0], **changes)


@must_report("are RESERVED")
def an_item_is_reserved_in_part(run: Run, rng: random.Random) -> Run:
    found = _held(run, rng)
    changes = {"granted_quantity": 1_000, "reserved_cap": 1_000}
    return with_row(run, found[0], **changes)


@must_report("observed .*, but the last decision is")
def a_decision_is_not_observed(run: Run, rng: random.Random) -> Run:
    effect = pick(rng, (one for one in _last(run).values() if one.state is Observed.RELEASED))
    return _more(run, effect, revision=effect.revision + 1)


@must_report("intends .*, but the API decided")
def another_quantity_was_decided(run: Run, rng: random.Random) -> Run:
    found = _held(run, rng)
    return replace(run, effects=swap(run.effects, found[1], replace(found[1], quantity=found[1].quantity + 1)))


@must_report("there should be")
def a_piece_of_stock_is_lost(run: Run, rng: random.Random) -> Run:
    sku = rng.choice(sorted(run.levels))
    level = run.levels[sku]
    name = rng.choice(("available", "held", "committed"))
    return replace(run, levels={**run.levels, sku: replace(level, **{name: getattr(level, name) + 1})})


@must_report("more than all .* are taken")
def more_is_granted_than_exists(run: Run, rng: random.Random) -> Run:
    effect = pick(rng, (one for one in run.effects if one.granted_quantity))
    return replace(run, effects=swap(run.effects, effect, replace(effect, granted_quantity=1_000_000)))


@must_report("does not exist, but was granted")
def a_sku_that_does_not_exist_is_granted(run: Run, rng: random.Random) -> Run:
    effect = pick(rng, (one for one in run.effects if one.granted_quantity))
    return replace(run, effects=swap(run.effects, effect, replace(effect, sku="phantom")))


@must_report("a released reservation holds stock")
def a_released_reservation_keeps_stock(run: Run, rng: random.Random) -> Run:
    effect = pick(rng, (one for one in run.effects if one.state is Observed.RELEASED))
    return replace(run, effects=swap(run.effects, effect, replace(effect, granted_quantity=1)))


@must_report("was decided after")
def a_lower_revision_is_decided(run: Run, rng: random.Random) -> Run:
    effect = pick(rng, _last(run).values())
    return _more(run, effect, revision=effect.revision - 1)


@must_report("was decided after")
def a_revision_is_decided_twice(run: Run, rng: random.Random) -> Run:
    effect = pick(rng, _last(run).values())
    return _more(run, effect)


@must_report("was final, but became")
def a_released_reservation_is_held_again(run: Run, rng: random.Random) -> Run:
    effect = pick(rng, (one for one in _last(run).values() if one.state is Observed.RELEASED))
    return _more(run, effect, state=Observed.HELD, revision=effect.revision + 1)


@must_report("a hold expired too early")
def a_hold_expires_early(run: Run, rng: random.Random) -> Run:
    found = _held(run, rng)
    return replace(
        run,
        effects=[*run.effects, replace(found[1], time=found[1].time, state=Observed.EXPIRED, granted_quantity=0)],
    )
