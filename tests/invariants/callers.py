"""Invariants for callers: acknowledged writes survive and take effect once; a replay gets the first reply again."""

from collections.abc import Iterable, Iterator, Sequence

from tests.invariants.history import Call, CallOutcome, Dump
from tests.invariants.operations import (
    READS,
    Operation,
    Quantities,
    apply,
    body,
    by_cart,
    by_request_id,
    parse,
)

REUSED = ("INVALID_ARGUMENT", "REQUEST_ID_REUSED")
# Reasons of refusals that come before the look-up of a stored reply.
_BEFORE_LOOK_UP = frozenset({"CALL_TIMEOUT", "DATABASE_UNAVAILABLE", "OVERLOADED", "SHUTTING_DOWN", "TOO_MANY_CALLS"})


def check_durable(calls: Sequence[Call], operations: Iterable[Operation], dump: Dump) -> list[str]:
    """Every cart has exactly the effects of its operations, and every reply is stored.

    `operations` are all operations that took effect, expiries included.
    """
    return [
        *_check_resolved(calls),
        *check_kept(calls, dump),
        *_check_quantities(by_cart(operations), dump),
    ]


def _check_resolved(calls: Iterable[Call]) -> Iterator[str]:
    for call in calls:
        if call.outcome is CallOutcome.UNKNOWN and not call.request_id and call.rpc not in READS:
            yield f"{call.rpc} on {call.cart} at {call.invoked} had no request_id: its outcome cannot be resolved"


def check_kept(calls: Iterable[Call], dump: Dump) -> Iterator[str]:
    """The reply to each acknowledged call is stored, and no refused call has one."""
    for (user, request_id), attempts in by_request_id(calls).items():
        acknowledged = [attempt for attempt in attempts if attempt.outcome is CallOutcome.OK]
        has_reply = (user, request_id) in dump.replies
        if acknowledged and not has_reply:
            yield f"{acknowledged[0].rpc} {request_id} of {user} was acknowledged, but its reply is not stored"
        if has_reply and all(attempt.outcome is CallOutcome.REFUSED for attempt in attempts):
            yield f"{attempts[0].rpc} {request_id} of {user} was refused ({attempts[0].reason}), but took effect"


def _check_quantities(carts: dict[str, list[Operation]], dump: Dump) -> Iterator[str]:
    found: dict[str, dict[str, int]] = {cart.key.name: {} for cart in dump.carts}
    for item in dump.items:
        found.setdefault(item.cart.name, {})[item.name] = item.quantity
    for name, items in found.items():
        if all(operation.rpc == "Expire" for operation in carts.get(name, ())):
            yield f"{name} exists with {items}, but no operation made it"
    for name, ordered in carts.items():
        expected: Quantities = {}
        for operation in ordered:
            apply(expected, operation)
        for item_name in sorted({*expected, *found.get(name, {})}):
            wanted, there = expected.get(item_name), found.get(name, {}).get(item_name)
            if wanted != there:
                last = "; ".join(str(one) for one in ordered[-3:])
                yield f"{item_name}: the operations make {wanted}, the database has {there}; the last were {last}"


def check_replays(calls: Iterable[Call], dump: Dump) -> list[str]:
    """A replay under its request_id gets the same bytes from every replica at any time.

    Another body under the same request_id is refused with REQUEST_ID_REUSED.
    """
    return [
        violation
        for (user, request_id), attempts in by_request_id(calls).items()
        for violation in _check_attempts(f"{request_id} of {user}", attempts, dump.replies.get((user, request_id)))
    ]


def _check_attempts(name: str, attempts: Sequence[Call], stored: bytes | None) -> Iterator[str]:
    answered = [attempt for attempt in attempts if attempt.outcome is CallOutcome.OK]
    if not answered:
        return
    first = min(answered, key=lambda attempt: attempt.returned)
    original, reply = body(first), _without_progress(first)
    for attempt in answered:
        if body(attempt) != original:
            yield f"{name} was accepted with two bodies: {first.request!r} and {attempt.request!r}"
        elif _without_progress(attempt) != reply:
            yield f"{name} got {first.reply!r}, but {attempt.reply!r} when it was repeated"
    waited = any(_waits(attempt) for attempt in answered)
    if stored is not None and not waited and stored != first.reply:
        yield f"{name} got {first.reply!r}, but {stored!r} is stored"
    for attempt in attempts:
        if attempt.outcome is not CallOutcome.REFUSED or attempt.invoked <= first.returned:
            continue
        same = body(attempt) == original
        if same and attempt.reason not in _BEFORE_LOOK_UP:
            yield f"{name} was acknowledged, but refused when it was repeated: {attempt.code} {attempt.reason}"
        if not same and (attempt.code, attempt.reason) != REUSED and attempt.reason not in _BEFORE_LOOK_UP:
            yield f"{name} was used for another body, which was refused with {attempt.code} {attempt.reason}"


def _waits(call: Call) -> bool:
    request, _ = parse(call)
    return "max_wait" in request.DESCRIPTOR.fields_by_name and request.HasField("max_wait")


def _without_progress(call: Call) -> bytes:
    """The reply without the reservations' progress if the request has max_wait: that shows the time of each answer."""
    if not _waits(call):
        return call.reply
    _, reply = parse(call)
    fields = reply.DESCRIPTOR.fields_by_name
    holder = reply.cart if "cart" in fields else reply
    for item in (
        holder.items if "items" in holder.DESCRIPTOR.fields_by_name else [reply.item] if "item" in fields else []
    ):
        item.ClearField("reservation")
        item.ClearField("reconciling")
    if "reconciling" in holder.DESCRIPTOR.fields_by_name:
        holder.ClearField("reconciling")
    raw: bytes = reply.SerializeToString(deterministic=True)
    return raw
