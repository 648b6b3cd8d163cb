"""Invariants of stock: compares the decisions of the Reservation API with the database."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from cart_grpc.carts.model import Item, Line
from cart_grpc.carts.progress import Progress, ProgressState, progress
from cart_grpc.protocol.reservation import FINAL, Observed, Reservation
from cart_grpc.simulator.stock import Levels
from tests.invariants.history import ApiEffect, Dump
from tests.invariants.operations import Operation

Owners = Mapping[str, str]


def owners(operations: Iterable[Operation], dump: Dump) -> tuple[dict[str, str], list[str]]:
    """The item's name for each reservation id in any answer or row, and a violation for each id used for two items."""
    found: dict[str, str] = {}
    violations = []
    named = [(row.reservation_id, row.cart.item_name(row.item_id)) for row in dump.reservations]
    named += [(item.reservation.reservation_id, item.name) for one in operations for item in _items(one)]
    for reservation_id, name in named:
        if found.setdefault(reservation_id, name) != name:
            violations.append(f"{reservation_id} was used for {found[reservation_id]} and for {name}")
    return found, violations


def _items(operation: Operation) -> Sequence[Any]:
    reply = operation.reply
    if reply is None:
        return ()
    fields = reply.DESCRIPTOR.fields_by_name
    if "item" in fields:
        return [reply.item]
    holder = reply.cart if "cart" in fields else reply
    found: Sequence[Any] = holder.items if "items" in holder.DESCRIPTOR.fields_by_name else ()
    return found


def check_one_live(effects: Iterable[ApiEffect], behind: Owners, *, since: int = 0) -> list[str]:
    """At every instant from `since` on, at most one reservation holds stock for one item. `behind` maps ids to items.

    For a weaker contract, `since` is the time at which everything had settled.
    """
    live: defaultdict[str, set[str]] = defaultdict(set)
    violations: dict[frozenset[str], str] = {}
    settled = False

    def look(thing: str, time: int) -> None:
        if len(live[thing]) > 1:
            held = frozenset(live[thing])
            violations.setdefault(held, f"at {time} {thing} has {len(held)} live reservations: {sorted(held)}")

    for effect in effects:
        if effect.time > since and not settled:
            settled = True
            for thing in sorted(live):
                look(thing, since)
        thing = behind.get(effect.reservation_id, effect.reservation_id)
        live[thing].discard(effect.reservation_id)
        if effect.granted_quantity:
            live[thing].add(effect.reservation_id)
        if settled:
            look(thing, effect.time)
    for thing in sorted(live):
        look(thing, since)
    return list(violations.values())


def check_no_orphans(effects: Iterable[ApiEffect], behind: Owners, dump: Dump) -> list[str]:
    """At quiescence, only items hold stock, and every reservation is known to the database."""
    last = _last(effects)
    of_items = {item.reservation_id: item for item in dump.items}
    rows = {row.reservation_id for row in dump.reservations}
    violations = []
    for reservation_id, effect in last.items():
        if effect.granted_quantity and effect.state is not Observed.COMMITTED and reservation_id not in of_items:
            violations.append(
                f"{reservation_id} holds {effect.granted_quantity} of {effect.sku} without an item: {effect}"
            )
        if reservation_id not in behind:
            violations.append(f"no answer and no row ever named {reservation_id}: {effect}")
        if reservation_id not in rows and effect.state not in FINAL:
            violations.append(f"the row of {reservation_id} was deleted before its end: {effect}")
    forgotten = sorted(behind.keys() - last.keys() - rows)
    violations += [f"{name} was made for {behind[name]}, but has neither a row nor a decision" for name in forgotten]
    undecided = [row for row in dump.reservations if row.observed_revision and row.reservation_id not in last]
    violations += [f"{row.reservation_id} was never decided, but its row has a decision: {row}" for row in undecided]
    return violations


def has_reason(_sku: str, reason: str) -> bool:
    """Whether the rejection has a reason that says more than its state."""
    return reason not in ("", *Observed.__members__)


def check_granted(
    effects: Iterable[ApiEffect],
    dump: Dump,
    now: int,
    may_reject: Callable[[str, str], bool] = has_reason,
) -> list[str]:
    """At quiescence, at the database's time `now`, each item is settled and holds exactly the quantity that it shows.

    RESERVED means that the item's quantity is held. REJECTED means that the quantity shown is held, and that
    `may_reject(sku, reason)` is true. Every row has observed the API's last decision.
    """
    last = _last(effects)
    rows = {row.reservation_id: row for row in dump.reservations}
    violations: list[str] = []
    for item in dump.items:
        row, effect = rows.get(item.reservation_id), last.get(item.reservation_id)
        if row is not None:
            violations.extend(_check_shown(item, progress(Line(item, row), now), effect, may_reject))
    for row in dump.reservations:
        violations.extend(_check_observed(row, last.get(row.reservation_id), now))
    return violations


def _check_shown(
    item: Item, seen: Progress, effect: ApiEffect | None, may_reject: Callable[[str, str], bool]
) -> Iterator[str]:
    held = effect.granted_quantity if effect is not None else 0
    if seen.state not in (ProgressState.RESERVED, ProgressState.REJECTED, ProgressState.COMMITTED):
        yield f"{item.name} is not settled: {seen}"
        return
    if held != seen.reserved_quantity or (effect is not None and held and effect.sku != item.sku):
        yield f"{item.name} shows {seen}, but the API has {effect}"
    if seen.state is ProgressState.REJECTED:
        if not may_reject(item.sku, seen.reason):
            yield f"{item.name} was rejected without a valid reason: {seen}"
        if held >= item.quantity:
            yield f"{item.name} is shown as rejected, but all of it is held: {effect}"
    elif seen.reserved_quantity != item.quantity:
        yield f"{item.name} has {item.quantity}, but {seen.reserved_quantity} are {seen.state.name}"


def _check_observed(row: Reservation, effect: ApiEffect | None, now: int) -> Iterator[str]:
    if effect is None or not row.settled:
        return
    lapsed = effect.state is not row.state and row.expire_time is not None and row.expire_time <= now
    observed = (row.observed_revision, row.state, row.granted_quantity)
    if not lapsed and observed != (effect.revision, effect.state, effect.granted_quantity):
        yield f"{row.reservation_id} observed {observed}, but the last decision is {effect}"
    asked = (row.disposition, row.quantity)
    if effect.revision == row.revision and asked != (effect.disposition, effect.quantity):
        yield f"{row.reservation_id} intends {asked} at revision {row.revision}, but the API decided {effect}"


def check_stock(effects: Iterable[ApiEffect], initial: Mapping[str, int], left: Mapping[str, Levels]) -> list[str]:
    """Stock is conserved: no decision grants more than exists, and `left` is the stock at the end, by sku.

    `initial` is the stock at the beginning, by sku.
    """
    taken: dict[str, Counter[bool]] = {sku: Counter() for sku in initial}
    before: dict[str, ApiEffect] = {}
    violations = []
    for effect in effects:
        if effect.granted_quantity and effect.sku not in initial:
            violations.append(f"{effect.sku} does not exist, but was granted: {effect}")
        for one, sign in ((before.get(effect.reservation_id), -1), (effect, 1)):
            if one is not None:
                is_sold = one.state is Observed.COMMITTED
                taken.setdefault(one.sku, Counter())[is_sold] += sign * one.granted_quantity
        before[effect.reservation_id] = effect
        if sum(taken[effect.sku].values()) > initial.get(effect.sku, 0):
            violations.append(f"more than all {initial.get(effect.sku, 0)} of {effect.sku} are taken: {effect}")
    for sku, levels in left.items():
        held, sold = taken[sku][False], taken[sku][True]
        expected = Levels(initial[sku] - held - sold, held, sold)
        if levels != expected:
            violations.append(f"of {initial[sku]} {sku} there should be {expected}, but there are {levels}")
    return violations


def check_decisions(effects: Iterable[ApiEffect]) -> list[str]:
    """From one decision on a reservation to the next: revisions rise, final states stay, no hold expires early."""
    last: dict[str, ApiEffect] = {}
    violations = []
    for after in effects:
        before = last.get(after.reservation_id)
        last[after.reservation_id] = after
        if after.state is Observed.RELEASED and after.granted_quantity:
            violations.append(f"a released reservation holds stock: {after}")
        if before is None:
            continue
        if after.revision < before.revision or (after.revision == before.revision and not _lapsed(before, after)):
            violations.append(f"revision {after.revision} was decided after {before.revision}: {after}")
        if before.state in FINAL and (after.state, after.granted_quantity) != (before.state, before.granted_quantity):
            violations.append(f"{before} was final, but became {after}")
        if _lapsed(before, after) and (before.expire_time is None or after.time < before.expire_time):
            violations.append(f"a hold expired too early: {before}, then {after}")
    return violations


def _lapsed(before: ApiEffect, after: ApiEffect) -> bool:
    """Whether `after` is the expiry of a hold, at the revision decided last."""
    return (
        after.revision == before.revision
        and before.state in (Observed.HELD, Observed.REJECTED)
        and before.granted_quantity > 0 == after.granted_quantity
    )


def _last(effects: Iterable[ApiEffect]) -> dict[str, ApiEffect]:
    return {effect.reservation_id: effect for effect in effects}
