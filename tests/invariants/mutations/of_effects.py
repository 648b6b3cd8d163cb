"""Reservations that are not what the carts say, and stock that is not what was taken."""

import random
from dataclasses import replace
from typing import Any

from cart_grpc.protocol.reservation import FINAL, Disposition, Observed, Reservation
from tests.invariants.history import Effect
from tests.invariants.mutations.registry import pick, says, swap, with_dump, with_row
from tests.invariants.run import Run


def _last(run: Run) -> dict[str, Effect]:
    return {effect.reservation_id: effect for effect in run.effects}


def _held(run: Run, numbers: random.Random) -> tuple[Reservation, Effect]:
    """A row that is RESERVED, and the last effect of it."""
    rows = {row.reservation_id: row for row in run.dump.reservations}
    held = [(rows[name], one) for name, one in _last(run).items() if one.state is Observed.HELD and name in rows]
    return pick(numbers, held)


def _more(run: Run, effect: Effect, **changes: Any) -> Run:
    return replace(run, effects=[*run.effects, replace(effect, time=run.now, **changes)])


@says("has 2 live reservations")
def a_removed_item_is_still_held(run: Run, numbers: random.Random) -> Run:
    found = _held(run, numbers)
    row, effect = found
    other = row._replace(reservation_id="other", disposition=Disposition.RELEASE, state=Observed.RELEASED)
    run = with_dump(run, reservations=[*run.dump.reservations, other])
    return _more(run, effect, reservation_id="other")


@says("for nobody")
def a_reservation_outlives_its_item(run: Run, numbers: random.Random) -> Run:
    found = _held(run, numbers)
    return with_dump(run, items=[item for item in run.dump.items if item.reservation_id != found[0].reservation_id])


@says("no answer and no row ever named phantom")
def a_reservation_appears_by_itself(run: Run, numbers: random.Random) -> Run:
    effect = pick(numbers, run.effects)
    return _more(run, effect, reservation_id="phantom")


@says("the row of .* is gone before its end")
def a_row_is_purged_too_early(run: Run, numbers: random.Random) -> Run:
    names = {name for name, effect in _last(run).items() if effect.state not in FINAL}
    row = pick(numbers, (row for row in run.dump.reservations if row.reservation_id in names))
    return with_dump(run, reservations=[one for one in run.dump.reservations if one is not row])


@says("was made for .*, and forgotten")
def a_reservation_is_forgotten(run: Run, numbers: random.Random) -> Run:
    row = pick(numbers, run.dump.reservations)
    run = replace(run, effects=[effect for effect in run.effects if effect.reservation_id != row.reservation_id])
    return with_dump(run, reservations=[one for one in run.dump.reservations if one is not row])


@says("was never decided, and its row says so")
def an_observation_is_made_up(run: Run, numbers: random.Random) -> Run:
    row = pick(numbers, run.dump.reservations)
    kept = [effect for effect in run.effects if effect.reservation_id != row.reservation_id]
    return replace(run, effects=kept)


@says("was used for .* and for")
def a_reservation_id_is_used_again(run: Run, numbers: random.Random) -> Run:
    row = pick(numbers, run.dump.reservations)
    return with_row(run, row, item_id="0" * 32)


@says("is not at its end")
def an_item_is_left_pending(run: Run, numbers: random.Random) -> Run:
    found = _held(run, numbers)
    return with_row(run, found[0], granted_quantity=0, intent_revision=found[0].revision + 1)


@says("and this is what is reserved for it: ")
def less_is_held_than_is_shown(run: Run, numbers: random.Random) -> Run:
    found = _held(run, numbers)
    return replace(
        run, effects=swap(run.effects, found[1], replace(found[1], granted_quantity=found[1].granted_quantity - 1))
    )


@says("and this is what is reserved for it: ")
def something_is_held_for_what_is_rejected(run: Run, numbers: random.Random) -> Run:
    rejected = [one for one in _last(run).values() if one.state is Observed.REJECTED]
    of_items = {item.reservation_id for item in run.dump.items}
    effect = pick(numbers, (one for one in rejected if one.reservation_id in of_items))
    return replace(
        run, effects=swap(run.effects, effect, replace(effect, granted_quantity=effect.granted_quantity + 1))
    )


@says("and this is what is reserved for it: ")
def another_sku_is_held(run: Run, numbers: random.Random) -> Run:
    found = _held(run, numbers)
    return replace(run, effects=swap(run.effects, found[1], replace(found[1], sku="other")))


@says("was refused for no good reason")
def a_refusal_says_nothing(run: Run, numbers: random.Random) -> Run:
    found = _held(run, numbers)
    return with_row(run, found[0], granted_quantity=0, state=Observed.REJECTED, reason="")


@says("is shown as refused, and all of it is held")
def a_refused_item_is_held_nevertheless(run: Run, numbers: random.Random) -> Run:
    found = _held(run, numbers)
    changes = {"granted_quantity": 0, "state": Observed.REJECTED, "reason": "OUT_OF_STOCK"}
    return with_row(run, found[0], **changes)


@says("RESERVED are")
def an_item_is_reserved_in_part(run: Run, numbers: random.Random) -> Run:
    found = _held(run, numbers)
    changes = {"granted_quantity": 1_000, "reserved_cap": 1_000}
    return with_row(run, found[0], **changes)


@says("has observed .*, and what was decided last is")
def a_decision_is_not_observed(run: Run, numbers: random.Random) -> Run:
    effect = pick(numbers, (one for one in _last(run).values() if one.state is Observed.RELEASED))
    return _more(run, effect, revision=effect.revision + 1)


@says("and .* was asked")
def something_else_was_asked(run: Run, numbers: random.Random) -> Run:
    found = _held(run, numbers)
    return replace(run, effects=swap(run.effects, found[1], replace(found[1], quantity=found[1].quantity + 1)))


@says("there should be")
def a_piece_of_stock_is_lost(run: Run, numbers: random.Random) -> Run:
    sku = numbers.choice(sorted(run.levels))
    level = run.levels[sku]
    name = numbers.choice(("available", "held", "committed"))
    return replace(run, levels={**run.levels, sku: replace(level, **{name: getattr(level, name) + 1})})


@says("more than all .* are taken")
def more_is_granted_than_there_is(run: Run, numbers: random.Random) -> Run:
    effect = pick(numbers, (one for one in run.effects if one.granted_quantity))
    return replace(run, effects=swap(run.effects, effect, replace(effect, granted_quantity=1_000_000)))


@says("and it was granted")
def what_is_not_there_is_granted(run: Run, numbers: random.Random) -> Run:
    effect = pick(numbers, (one for one in run.effects if one.granted_quantity))
    return replace(run, effects=swap(run.effects, effect, replace(effect, sku="phantom")))


@says("what is released holds something")
def a_release_keeps_something(run: Run, numbers: random.Random) -> Run:
    effect = pick(numbers, (one for one in run.effects if one.state is Observed.RELEASED))
    return replace(run, effects=swap(run.effects, effect, replace(effect, granted_quantity=1)))


@says("was decided after")
def a_lower_revision_is_decided(run: Run, numbers: random.Random) -> Run:
    effect = pick(numbers, _last(run).values())
    return _more(run, effect, revision=effect.revision - 1)


@says("was decided after")
def a_revision_is_decided_twice(run: Run, numbers: random.Random) -> Run:
    effect = pick(numbers, _last(run).values())
    return _more(run, effect)


@says("was final, and became")
def what_was_released_is_held_again(run: Run, numbers: random.Random) -> Run:
    effect = pick(numbers, (one for one in _last(run).values() if one.state is Observed.RELEASED))
    return _more(run, effect, state=Observed.HELD, revision=effect.revision + 1)


@says("a hold ended before its time")
def a_hold_ends_early(run: Run, numbers: random.Random) -> Run:
    found = _held(run, numbers)
    return replace(
        run,
        effects=[*run.effects, replace(found[1], time=found[1].time, state=Observed.EXPIRED, granted_quantity=0)],
    )
