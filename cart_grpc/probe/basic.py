"""`basic`, as the probe knows it: what cart_grpc relies on."""

import asyncio
from dataclasses import replace
from functools import partial
from typing import Final

from cart_grpc.probe.basic_session import BasicSession, say, to_begin_with
from cart_grpc.probe.check import must
from cart_grpc.probe.contract import Contract, check
from cart_grpc.probe.findings import Broken, NotTested
from cart_grpc.protocol.reservation import Intent, PermanentFailure
from cart_grpc.reservation_api.api import NoAnswerError

_AT_ONCE: Final = 8
_UNUSUAL: Final = "Kaffeebohnen & Tee 100 %/¼ \"ñ\" '茶' 🫖 \\ ?id=1#2+3"


@check("post", "POST of 2")
async def post(session: BasicSession) -> str:
    answer = await session.post(session.hold())
    if isinstance(answer, PermanentFailure):
        raise NotTested(f"{answer}; --sku should name one of which there are a few")
    return f"reservation_id {answer}"


@check("post", "POST of all there are, and of 1 more")
async def taken(session: BasicSession) -> str:
    await session.reserved(session.hold(_stock(session)))
    try:
        answer = await session.post(session.hold(1))
    except NoAnswerError as error:
        raise NotTested(str(error)) from None
    must(isinstance(answer, PermanentFailure), f"all are reserved, and 1 more is, too: reservation_id {answer}")
    return str(answer)


@check("look-up", "look-up, POST of 2, and look-up at once")
async def found(session: BasicSession) -> str:
    intent = session.hold()
    await session.find(intent)
    answer = await session.reserved(intent)
    live = await session.find(intent)
    must([each.quantity for each in live] == [2], f"posted as {answer}; found: {say(live)}")
    return say(live)


@check("unknown", "look-up of an id never posted")
async def unknown(session: BasicSession) -> str:
    try:
        live = await session.look_up(session.hold())
    except NoAnswerError as error:
        must(error.code != "HTTP_404", str(error))
        raise
    must(not live, f"found: {say(live)}")
    return "an empty list"


@check("apart", f"{_AT_ONCE} POSTs of different ids at once, of 1 and 2 by turns")
async def apart(session: BasicSession) -> str:
    await session.found(session.hold(1))
    intents = [session.hold(1 + number % 2) for number in range(_AT_ONCE)]
    posts = await asyncio.gather(*map(session.post, intents), return_exceptions=True)
    held = [intent for intent, answer in zip(intents, posts, strict=True) if isinstance(answer, str)]
    if len(held) < 2:
        why = next(answer for answer in posts if not isinstance(answer, str))
        raise NotTested(f"there are no reservations to try it on: {why}")
    for intent in held:
        live = await session.find(intent)
        must(not live or [each.quantity for each in live] == [intent.quantity], f"{intent.quantity} became {say(live)}")
    return f"{len(held)} reservations, each as posted"


@check("repeat", "POST of 2, and the same again")
async def repeat(session: BasicSession) -> str:
    intent = session.hold()
    first = await session.found(intent)
    again = await session.post(intent)
    live = await session.find(intent)
    must(bool(live) and {each.quantity for each in live} == {2}, f"found: {say(live)}")
    if len(live) > 1:
        return f"{len(live)} reservations, as `basic` has it: {say(live)}"
    if again == first.reservation_id:
        return "one reservation, and the same answer: POST is idempotent, and a stronger contract is near"
    return f"one reservation, and then {again if isinstance(again, PermanentFailure) else f'reservation_id {again}'}"


@check("delete", "POST of 2, DELETE, look-up")
async def gone(session: BasicSession) -> str:
    await _deleted(session, session.hold())
    return "nothing is found"


@check("delete", "POST of 2, and the same again; DELETE of the first")
async def one_of_two(session: BasicSession) -> str:
    intent = session.hold()
    first = await session.found(intent)
    await session.post(intent)
    before = await session.find(intent)
    if len(before) < 2:
        raise NotTested("there is only one")
    await _delete(session, intent, first.reservation_id)
    live = await session.find(intent)
    must(live == [each for each in before if each.reservation_id != first.reservation_id], f"found: {say(live)}")
    return f"found: {say(live)}"


@check("delete", "POST of all there are, DELETE, POST of all again")
async def given_back(session: BasicSession) -> str:
    intent = session.hold(_stock(session))
    await _deleted(session, intent)
    answer = await session.post(replace(intent, reservation_id=session.new_id()))
    must(not isinstance(answer, PermanentFailure), f"deleted, and then {answer}")
    return f"reservation_id {answer}"


@check("gone", "POST of 2, and DELETE of it twice")
async def twice(session: BasicSession) -> str:
    intent = session.hold()
    reservation_id = (await session.found(intent)).reservation_id
    try:
        await _delete(session, intent, reservation_id)
    except Broken as broken:
        raise NotTested(f"it cannot be deleted once: {broken}") from None
    await _delete(session, intent, reservation_id)
    return "gone both times"


@check("gone", "DELETE of a reservation_id never given")
async def stranger(session: BasicSession) -> str:
    intent, other = session.hold(), session.hold()
    await session.found(intent)
    deleting, finding = (partial(session.delete, other, session.new_id()), partial(session.find, intent))
    try:
        refusal = await session.must_answer(deleting, finding)
        said = str(refusal) if refusal else "gone"
    except NoAnswerError as error:
        said = str(error)
    live = await session.find(intent)
    must(len(live) == 1, f"{said}; of another one, found: {say(live)}")
    return said


@check("refusal", "POST of more than there is, and look-up")
async def too_many(session: BasicSession) -> str:
    answer = await _decided(session, session.hold(session.too_many))
    if isinstance(answer, PermanentFailure):
        return str(answer)
    if session.config.stock is None:
        raise NotTested(f"{session.too_many} were reserved; --stock would say how many there are")
    raise Broken(f"{session.too_many} were reserved, more than there are")


@check("refusal", "POST of an item that should not be known, and look-up")
async def unknown_item(session: BasicSession) -> str:
    answer = await _decided(session, _unknown_item(session))
    return str(answer) if isinstance(answer, PermanentFailure) else "reserved: every item is known"


@check("text", "POST of an item with unusual letters, and look-up")
async def unusual(session: BasicSession) -> str:
    async def usual() -> None:
        await to_begin_with(session.post(_unknown_item(session)))

    await session.found(session.hold(1))
    await usual()
    intent, answer = await session.must_answer(lambda: _post(session, session.hold(1, item=_UNUSUAL)), usual)
    if isinstance(answer, PermanentFailure):
        return str(answer)
    live = await session.find(intent)
    must([each.quantity for each in live] == [1], f"posted as {answer}; found: {say(live)}")
    return f"{say(live)}, as posted"


async def _decided(session: BasicSession, intent: Intent) -> str | PermanentFailure:
    """Post `intent` until there is an answer, under a new id each time. Raises Broken if a refusal left something."""
    asked, answer = await session.must_answer(
        lambda: _post(session, replace(intent, reservation_id=session.new_id())),
        lambda: session.post(session.hold(1)),
    )
    if isinstance(answer, PermanentFailure):
        live = await session.find(asked)
        must(not live, f"{answer}; found: {say(live)}")
    return answer


async def _post(session: BasicSession, intent: Intent) -> tuple[Intent, str | PermanentFailure]:
    return intent, await session.post(intent)


def _unknown_item(session: BasicSession) -> Intent:
    return session.hold(1, item=f"cart-grpc-probe-{session.new_id()}")


async def _deleted(session: BasicSession, intent: Intent) -> None:
    await _delete(session, intent, (await session.found(intent)).reservation_id)
    live = await session.find(intent)
    must(not live, f"deleted, and found: {say(live)}")


async def _delete(session: BasicSession, intent: Intent, reservation_id: str) -> None:
    refusal = await session.must_answer(
        partial(session.delete, intent, reservation_id), partial(session.find, session.hold())
    )
    must(refusal is None, f"DELETE: {refusal}")


def _stock(session: BasicSession) -> int:
    if session.config.stock is None:
        raise NotTested("--stock would say how many there are")
    return session.config.stock


BASIC: Final = Contract(
    name="basic",
    checks=(
        # The first: if it gives nothing back, there are never as many again.
        given_back,
        taken,
        post,
        found,
        unknown,
        apart,
        repeat,
        gone,
        one_of_two,
        twice,
        stranger,
        too_many,
        unknown_item,
        unusual,
    ),
    costs={
        "post": "an item is never shown as RESERVED, or is shown so while nothing is held for it",
        "look-up": "what is reserved is not found after a time-out, and reserved again; a removed item stays reserved",
        "unknown": "nothing is ever reserved, or the reservations of others are adopted and given back",
        "apart": "an item is shown as RESERVED with what was reserved for another",
        "repeat": "a POST that arrives twice, or late, leaves more or less reserved than the cart shows",
        "delete": "stock that a removed item had stays reserved, or what is still in the cart is given back with it",
        "gone": "a removal that meets another, or a late one, is tried again without end, or hits another reservation",
        "refusal": "an item that cannot be had is asked for without end, or is REJECTED while stock is held for it",
        "text": "an item with such a name stays PENDING, or its look-up is about another",
    },
    lasts="until it is deleted",
)
