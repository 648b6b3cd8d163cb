"""Corruptions of the order of operations."""

import random
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

from cartgrpc.v1 import cart_pb2
from google.protobuf.message import Message

from tests.invariants.corruptions.registry import answers, attempts, changes, must_report, pick, swap, with_dump
from tests.invariants.history import Call, CallOutcome
from tests.invariants.operations import READS, by_cart, parse, took_place
from tests.invariants.run import Run


def _reply_again(run: Run, call: Call, **values: Any) -> Run:
    """The run with another reply of `call`, in all its attempts and in the database."""
    _, reply = parse(call)
    target = reply.cart if "cart" in reply.DESCRIPTOR.fields_by_name else reply
    for name, value in values.items():
        setattr(target, name, value)
    raw = reply.SerializeToString(deterministic=True)
    calls = [
        replace(one, reply=raw) if one is call or (call.request_id and one.reply == call.reply) else one
        for one in run.calls
    ]
    key = (call.user, call.request_id)
    replies = {**run.dump.replies, key: raw} if key in run.dump.replies else run.dump.replies
    return replace(with_dump(run, replies=replies), calls=calls)


def _neighbours(run: Run, rng: random.Random) -> tuple[Call, Call]:
    """Two consecutive changes of one cart; the first was answered before the second began."""
    pairs = []
    for ordered in by_cart(changes(run)).values():
        for one, two in pairwise(ordered):
            answered = [[call for call in attempts(run, of) if call.outcome is CallOutcome.OK] for of in (one, two)]
            if one.returned < two.invoked and all(answered):
                pairs.append((answered[0][0], answered[1][0]))
    return pick(rng, pairs)


@must_report("was answered before .* began, but follows it")
def two_revisions_are_swapped(run: Run, rng: random.Random) -> Run:
    pair = _neighbours(run, rng)
    (_, first), (_, second) = parse(pair[0]), parse(pair[1])
    old, new = [getattr(one, "cart", one) for one in (first, second)]
    swapped = _reply_again(run, pair[0], revision=new.revision, etag=new.etag)
    other = next(
        call for call in swapped.calls if call.request_id == pair[1].request_id and call.reply == pair[1].reply
    )
    return _reply_again(swapped, other, revision=old.revision, etag=old.etag)


@must_report("changed something, but was answered with a revision that")
def two_changes_have_one_revision(run: Run, rng: random.Random) -> Run:
    pair = _neighbours(run, rng)
    _, reply = parse(pair[0])
    shown = getattr(reply, "cart", reply)
    return _reply_again(run, pair[1], revision=shown.revision, etag=shown.etag)


@must_report("is a change, but was answered with the etag of")
def a_change_keeps_the_etag(run: Run, rng: random.Random) -> Run:
    call = pick(rng, answers(run, "AddItem", "RemoveItem"))
    return _reply_again(run, call, etag='"0"')


@must_report("was the last change")
def a_read_has_an_etag_that_no_change_made(run: Run, rng: random.Random) -> Run:
    call = pick(rng, answers(run, "GetCart"))
    return _reply_again(run, call, etag='"7fffffff"')


@must_report("was answered before .* began, but follows it")
def a_read_is_stale(run: Run, rng: random.Random) -> Run:
    stale = []
    for ordered in by_cart(took_place(run.calls, {})).values():
        reads = [one for one in ordered if one.rpc in READS]
        later = {one.revision: one.returned for one in ordered if one.rpc not in READS}
        stale += [(one, max(later.values())) for one in reads if later and max(later) > one.revision]
    found = pick(rng, stale)
    read, _ = found
    call = next(one for one in run.calls if one.rpc in READS and one.invoked == read.invoked)
    late = max(one.returned for one in run.calls) + 1
    return replace(run, calls=swap(run.calls, call, replace(call, invoked=late, returned=late + 1)))


@must_report("shows .* but all changes up to it make")
def a_reply_shows_another_quantity(run: Run, rng: random.Random) -> Run:
    call = pick(rng, answers(run, "AddItem", "UpdateItem"))
    _, reply = parse(call)
    reply.item.quantity += 1
    return _with_item(run, call, reply.item)


def _with_item(run: Run, call: Call, item: cart_pb2.Item) -> Run:
    _, reply = parse(call)
    reply.item.CopyFrom(item)
    return _with_reply(run, call, reply)


def _with_reply(run: Run, call: Call, reply: Message) -> Run:
    raw = reply.SerializeToString(deterministic=True)
    calls = [replace(one, reply=raw) if one.reply == call.reply else one for one in run.calls]
    replies = {key: raw if kept == call.reply else kept for key, kept in run.dump.replies.items()}
    return replace(with_dump(run, replies=replies), calls=calls)


@must_report("shows .* but all changes up to it make")
def a_read_misses_an_item(run: Run, rng: random.Random) -> Run:
    call = pick(rng, (call for call in answers(run, "GetCart") if parse(call)[1].cart.items))
    _, reply = parse(call)
    del reply.cart.items[0]
    return replace(run, calls=swap(run.calls, call, replace(call, reply=reply.SerializeToString(deterministic=True))))


@must_report("lists .* as removed, but it removed")
def a_reply_forgets_a_removed_item(run: Run, rng: random.Random) -> Run:
    call = pick(rng, (call for call in answers(run, "ReplaceItems", "ClearCart") if parse(call)[1].removed_items))
    _, reply = parse(call)
    del reply.removed_items[0]
    return _with_reply(run, call, reply)


@must_report("expected the etag of")
def a_change_ignores_its_etag(run: Run, rng: random.Random) -> Run:
    operation = pick(rng, (one for one in changes(run) if one.rpc in ("AddItem", "RemoveItem")))
    operation.request.etag = '"7fffffff"'
    raw = operation.request.SerializeToString(deterministic=True)
    sent = {id(call) for call in attempts(run, operation) if call.outcome is not CallOutcome.REFUSED}
    return replace(run, calls=[replace(one, request=raw) if id(one) in sent else one for one in run.calls])


@must_report("(removed|updated) an item that did not exist")
def an_item_that_does_not_exist_is_changed(run: Run, rng: random.Random) -> Run:
    operations = took_place(run.calls, {})
    answered = Counter((one.cart, one.revision) for one in operations)
    # The others at its revision, if there are any, can have made it.
    made = [one for one in operations if one.etag == one.revision and answered[one.cart, one.revision] == 1]
    operation = pick(rng, (one for one in made if one.rpc in ("RemoveItem", "UpdateItem")))
    item = operation.request if operation.rpc == "RemoveItem" else operation.request.item
    item.name = f"{operation.cart}/items/{'0' * 32}"
    raw = operation.request.SerializeToString(deterministic=True)
    sent = {id(call) for call in attempts(run, operation)}
    return replace(run, calls=[replace(one, request=raw) if id(one) in sent else one for one in run.calls])
