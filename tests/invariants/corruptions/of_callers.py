"""Corruptions of calls and replies."""

import random
from dataclasses import replace
from typing import Any

from cartgrpc.v1 import cart_service_pb2

from tests.invariants.corruptions.registry import acknowledged, answers, must_report, pick, swap, with_dump
from tests.invariants.history import CallOutcome
from tests.invariants.operations import by_request_id
from tests.invariants.run import Run


@must_report("the operations make .* the database has None")
def an_acknowledged_item_is_lost(run: Run, rng: random.Random) -> Run:
    item = pick(rng, run.dump.items)
    return with_dump(run, items=[one for one in run.dump.items if one is not item])


@must_report("the operations make .* the database has")
def an_acknowledged_add_takes_effect_twice(run: Run, rng: random.Random) -> Run:
    item = pick(rng, run.dump.items)
    return with_dump(run, items=swap(run.dump.items, item, item._replace(quantity=2 * item.quantity)))


@must_report("the operations make None, the database has")
def a_removed_item_exists_again(run: Run, rng: random.Random) -> Run:
    item = pick(rng, run.dump.items)
    return with_dump(run, items=[*run.dump.items, item._replace(item_id="0" * 32)])


@must_report("exists with .*, but no operation made it")
def a_cart_exists_without_an_operation(run: Run, rng: random.Random) -> Run:
    cart = pick(rng, run.dump.carts)
    return with_dump(run, carts=[*run.dump.carts, cart._replace(key=cart.key._replace(cart_id="phantom"))])


@must_report("was acknowledged, but its reply is not stored")
def a_stored_reply_is_lost(run: Run, rng: random.Random) -> Run:
    key = pick(rng, acknowledged(run))
    return with_dump(run, replies={name: reply for name, reply in run.dump.replies.items() if name != key})


@must_report("was refused .*, but took effect")
def a_refused_operation_takes_effect(run: Run, rng: random.Random) -> Run:
    keys = [key for key, calls in by_request_id(run.calls).items() if all(call.reason for call in calls)]
    return with_dump(run, replies={**run.dump.replies, pick(rng, keys): b""})


@must_report("its outcome cannot be resolved")
def an_unknown_outcome_cannot_be_resolved(run: Run, rng: random.Random) -> Run:
    call = pick(rng, (call for call in run.calls if call.outcome is CallOutcome.UNKNOWN))
    return replace(run, calls=[*run.calls, replace(call, request_id="")])


@must_report("a reply to .* is stored, but no operation has this request_id")
def a_reply_is_stored_without_an_operation(run: Run, rng: random.Random) -> Run:
    key = pick(rng, acknowledged(run))
    return with_dump(run, replies={**run.dump.replies, (key[0], "phantom"): run.dump.replies[key]})


@must_report("got .*, but .* when it was repeated")
def a_replay_gets_another_reply(run: Run, rng: random.Random) -> Run:
    call = pick(rng, answers(run, "AddItem", "RemoveItem"))
    other = replace(call, invoked=call.returned, returned=call.returned + 1, reply=call.reply + b"\x80\x01\x00")
    return replace(run, calls=[*run.calls, other])


@must_report("but .* is stored")
def another_reply_is_stored(run: Run, rng: random.Random) -> Run:
    key = pick(rng, acknowledged(run))
    return with_dump(run, replies={**run.dump.replies, key: run.dump.replies[key] + b"\x80\x01\x00"})


def _again(run: Run, rng: random.Random, **changes: Any) -> Run:
    call = pick(rng, answers(run, "AddItem"))
    return replace(
        run, calls=[*run.calls, replace(call, invoked=call.returned + 1, returned=call.returned + 2, **changes)]
    )


@must_report("was accepted with two bodies")
def another_body_is_accepted(run: Run, rng: random.Random) -> Run:
    return _again(run, rng, request=cart_service_pb2.AddItemRequest(parent="other").SerializeToString())


@must_report("used for another body, which was refused with NOT_FOUND")
def another_body_is_refused_with_another_error(run: Run, rng: random.Random) -> Run:
    other = cart_service_pb2.AddItemRequest(parent="other").SerializeToString()
    return _again(run, rng, request=other, outcome=CallOutcome.REFUSED, code="NOT_FOUND", reason="X", reply=b"")


@must_report("refused when it was repeated: NOT_FOUND")
def a_replay_is_refused(run: Run, rng: random.Random) -> Run:
    return _again(run, rng, outcome=CallOutcome.REFUSED, code="NOT_FOUND", reason="X", reply=b"")
