"""What callers were promised, and did not get."""

import random
from dataclasses import replace
from typing import Any

from cartgrpc.v1 import cart_service_pb2

from tests.invariants.history import Outcome
from tests.invariants.mutations.registry import acknowledged, answers, pick, says, swap, with_dump
from tests.invariants.operations import by_request_id
from tests.invariants.run import Run


@says("the operations make .* the database has None")
def an_acknowledged_item_is_lost(run: Run, numbers: random.Random) -> Run:
    item = pick(numbers, run.dump.items)
    return with_dump(run, items=[one for one in run.dump.items if one is not item])


@says("the operations make .* the database has")
def an_acknowledged_add_has_its_effect_twice(run: Run, numbers: random.Random) -> Run:
    item = pick(numbers, run.dump.items)
    return with_dump(run, items=swap(run.dump.items, item, item._replace(quantity=2 * item.quantity)))


@says("the operations make None, the database has")
def a_removed_item_is_there_again(run: Run, numbers: random.Random) -> Run:
    item = pick(numbers, run.dump.items)
    return with_dump(run, items=[*run.dump.items, item._replace(item_id="0" * 32)])


@says("nobody has asked for it")
def a_cart_appears_by_itself(run: Run, numbers: random.Random) -> Run:
    cart = pick(numbers, run.dump.carts)
    return with_dump(run, carts=[*run.dump.carts, cart._replace(key=cart.key._replace(cart_id="phantom"))])


@says("was acknowledged, and its reply is gone")
def a_reply_is_lost(run: Run, numbers: random.Random) -> Run:
    key = pick(numbers, acknowledged(run))
    return with_dump(run, replies={name: reply for name, reply in run.dump.replies.items() if name != key})


@says("was refused .*, and took place")
def a_refusal_has_an_effect(run: Run, numbers: random.Random) -> Run:
    keys = [key for key, calls in by_request_id(run.calls).items() if all(call.reason for call in calls)]
    return with_dump(run, replies={**run.dump.replies, pick(numbers, keys): b""})


@says("nobody can tell what became of it")
def an_unknown_outcome_cannot_be_resolved(run: Run, numbers: random.Random) -> Run:
    call = pick(numbers, (call for call in run.calls if call.outcome is Outcome.UNKNOWN))
    return replace(run, calls=[*run.calls, replace(call, request_id="")])


@says("a reply to .* is kept, and nobody has asked for it")
def a_reply_appears_by_itself(run: Run, numbers: random.Random) -> Run:
    key = pick(numbers, acknowledged(run))
    return with_dump(run, replies={**run.dump.replies, (key[0], "phantom"): run.dump.replies[key]})


@says("when it was repeated")
def a_replay_is_answered_otherwise(run: Run, numbers: random.Random) -> Run:
    call = pick(numbers, answers(run, "AddItem", "RemoveItem"))
    other = replace(call, invoked=call.returned, returned=call.returned + 1, reply=call.reply + b"\x80\x01\x00")
    return replace(run, calls=[*run.calls, other])


@says("is kept")
def another_reply_is_kept(run: Run, numbers: random.Random) -> Run:
    key = pick(numbers, acknowledged(run))
    return with_dump(run, replies={**run.dump.replies, key: run.dump.replies[key] + b"\x80\x01\x00"})


def _again(run: Run, numbers: random.Random, **changes: Any) -> Run:
    call = pick(numbers, answers(run, "AddItem"))
    return replace(
        run, calls=[*run.calls, replace(call, invoked=call.returned + 1, returned=call.returned + 2, **changes)]
    )


@says("was accepted with two bodies")
def another_body_is_accepted(run: Run, numbers: random.Random) -> Run:
    return _again(run, numbers, request=cart_service_pb2.AddItemRequest(parent="other").SerializeToString())


@says("used for another body, which was refused with NOT_FOUND")
def another_body_is_refused_with_another_error(run: Run, numbers: random.Random) -> Run:
    other = cart_service_pb2.AddItemRequest(parent="other").SerializeToString()
    return _again(run, numbers, request=other, outcome=Outcome.REFUSED, code="NOT_FOUND", reason="X", reply=b"")


@says("refused when it was repeated: NOT_FOUND")
def a_replay_is_refused(run: Run, numbers: random.Random) -> Run:
    return _again(run, numbers, outcome=Outcome.REFUSED, code="NOT_FOUND", reason="X", reply=b"")
