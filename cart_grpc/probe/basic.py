"""The contract `basic` for the probe: the behaviour on which cart_grpc relies."""

import asyncio
from dataclasses import replace
from functools import partial
from typing import Final

from cart_grpc.probe.basic_session import BasicSession, as_precondition, describe
from cart_grpc.probe.check import require
from cart_grpc.probe.contract import Contract, check
from cart_grpc.probe.findings import CheckFailed, NotTested
from cart_grpc.protocol.reservation import Intent, PermanentFailure
from cart_grpc.reservation_api.api import NoAnswerError

_CONCURRENT: Final = 8
_UNUSUAL_ITEM: Final = "Kaffeebohnen & Tee 100 %/¼ \"ñ\" '茶' 🫖 \\ ?id=1#2+3"


@check("post", "POST of 2")
async def post(session: BasicSession) -> str:
    answer = await session.post(session.new_hold())
    if isinstance(answer, PermanentFailure):
        raise NotTested(f"{answer}; choose a --sku with a few units")
    return f"reservation_id {answer}"


@check("post", "POST of the whole stock, then of 1 more")
async def taken(session: BasicSession) -> str:
    await session.prepare_post(session.new_hold(_stock(session)))
    try:
        answer = await session.post(session.new_hold(1))
    except NoAnswerError as error:
        raise NotTested(str(error)) from None
    require(
        isinstance(answer, PermanentFailure), f"the whole stock is reserved, and 1 more, too: reservation_id {answer}"
    )
    return str(answer)


@check("look-up", "look-up, POST of 2, look-up immediately")
async def found(session: BasicSession) -> str:
    intent = session.new_hold()
    await session.find(intent)
    answer = await session.prepare_post(intent)
    live = await session.find(intent)
    require([each.quantity for each in live] == [2], f"posted as {answer}; a look-up finds {describe(live)}")
    return describe(live)


@check("unknown", "look-up of an unknown id")
async def unknown(session: BasicSession) -> str:
    try:
        live = await session.look_up(session.new_hold())
    except NoAnswerError as error:
        require(error.code != "HTTP_404", str(error))
        raise
    require(not live, f"a look-up finds {describe(live)}")
    return "an empty list"


@check("apart", f"{_CONCURRENT} concurrent POSTs of different ids, of 1 and 2 in turn")
async def apart(session: BasicSession) -> str:
    await session.prepare_reservation(session.new_hold(1))
    intents = [session.new_hold(1 + number % 2) for number in range(_CONCURRENT)]
    posts = await asyncio.gather(*map(session.post, intents), return_exceptions=True)
    held = [intent for intent, answer in zip(intents, posts, strict=True) if isinstance(answer, str)]
    if len(held) < 2:
        why = next(answer for answer in posts if not isinstance(answer, str))
        raise NotTested(f"this check needs reservations: {why}")
    for intent in held:
        live = await session.find(intent)
        require(
            not live or [each.quantity for each in live] == [intent.quantity],
            f"{intent.quantity} became {describe(live)}",
        )
    return f"{len(held)} reservations, each as posted"


@check("repeat", "POST of 2, then the same again")
async def repeat(session: BasicSession) -> str:
    intent = session.new_hold()
    first = await session.prepare_reservation(intent)
    again = await session.post(intent)
    live = await session.find(intent)
    require(bool(live) and {each.quantity for each in live} == {2}, f"a look-up finds {describe(live)}")
    if len(live) > 1:
        return f"{len(live)} reservations, as `basic` allows: {describe(live)}"
    if again == first.reservation_id:
        return "one reservation and the same answer: this API has an idempotent POST, which `basic` does not use"
    return f"one reservation, then {again if isinstance(again, PermanentFailure) else f'reservation_id {again}'}"


@check("delete", "POST of 2, DELETE, look-up")
async def gone(session: BasicSession) -> str:
    await _deleted(session, session.new_hold())
    return "the look-up finds nothing"


@check("delete", "POST of 2, then the same again, DELETE of the first")
async def one_of_two(session: BasicSession) -> str:
    intent = session.new_hold()
    first = await session.prepare_reservation(intent)
    await session.post(intent)
    before = await session.find(intent)
    if len(before) < 2:
        raise NotTested("the repeated POST made no second reservation")
    await _delete(session, intent, first.reservation_id)
    live = await session.find(intent)
    require(
        live == [each for each in before if each.reservation_id != first.reservation_id],
        f"a look-up finds {describe(live)}",
    )
    return f"a look-up finds {describe(live)}"


@check("delete", "POST of the whole stock, DELETE, POST of the whole stock")
async def reusable(session: BasicSession) -> str:
    intent = session.new_hold(_stock(session))
    await _deleted(session, intent)
    answer = await session.post(replace(intent, reservation_id=session.new_id()))
    require(not isinstance(answer, PermanentFailure), f"deleted, then {answer}")
    return f"reservation_id {answer}"


@check("gone", "POST of 2, then DELETE twice")
async def twice(session: BasicSession) -> str:
    intent = session.new_hold()
    reservation_id = (await session.prepare_reservation(intent)).reservation_id
    try:
        await _delete(session, intent, reservation_id)
    except CheckFailed as failure:
        raise NotTested(f"the first DELETE fails: {failure}") from None
    await _delete(session, intent, reservation_id)
    return "both succeed"


@check("gone", "DELETE of an unknown reservation_id")
async def unknown_delete(session: BasicSession) -> str:
    intent, other = session.new_hold(), session.new_hold()
    await session.prepare_reservation(intent)
    deleting, finding = (partial(session.delete, other, session.new_id()), partial(session.find, intent))
    try:
        refusal = await session.require_answer(deleting, finding)
        answer = str(refusal) if refusal else "success"
    except NoAnswerError as error:
        answer = str(error)
    live = await session.find(intent)
    require(len(live) == 1, f"{answer}; look-up of another reservation: {describe(live)}")
    return answer


@check("refusal", "POST of more than the stock, look-up")
async def too_many(session: BasicSession) -> str:
    answer = await _decided(session, session.new_hold(session.too_many))
    if isinstance(answer, PermanentFailure):
        return str(answer)
    if session.config.stock is None:
        raise NotTested(f"{session.too_many} were reserved; this check needs --stock")
    raise CheckFailed(f"{session.too_many} were reserved, more than the stock")


@check("refusal", "POST of an item that should be unknown, look-up")
async def unknown_item(session: BasicSession) -> str:
    answer = await _decided(session, _unknown_item(session))
    return str(answer) if isinstance(answer, PermanentFailure) else "reserved: the API accepts any item"


@check("text", "POST of an item with unusual characters, look-up")
async def unusual(session: BasicSession) -> str:
    async def usual() -> None:
        await as_precondition(session.post(_unknown_item(session)))

    await session.prepare_reservation(session.new_hold(1))
    await usual()
    intent, answer = await session.require_answer(
        lambda: _post(session, session.new_hold(1, item=_UNUSUAL_ITEM)), usual
    )
    if isinstance(answer, PermanentFailure):
        return str(answer)
    live = await session.find(intent)
    require([each.quantity for each in live] == [1], f"posted as {answer}; a look-up finds {describe(live)}")
    return f"{describe(live)}, as posted"


async def _decided(session: BasicSession, intent: Intent) -> str | PermanentFailure:
    """Post `intent`, with a new id for each try, until there is an answer.

    Raises CheckFailed if the API refuses and reserves anyway.
    """
    posted, answer = await session.require_answer(
        lambda: _post(session, replace(intent, reservation_id=session.new_id())),
        lambda: session.post(session.new_hold(1)),
    )
    if isinstance(answer, PermanentFailure):
        live = await session.find(posted)
        require(not live, f"{answer}; a look-up finds {describe(live)}")
    return answer


async def _post(session: BasicSession, intent: Intent) -> tuple[Intent, str | PermanentFailure]:
    return intent, await session.post(intent)


def _unknown_item(session: BasicSession) -> Intent:
    return session.new_hold(1, item=f"cart-grpc-probe-{session.new_id()}")


async def _deleted(session: BasicSession, intent: Intent) -> None:
    await _delete(session, intent, (await session.prepare_reservation(intent)).reservation_id)
    live = await session.find(intent)
    require(not live, f"deleted, but a look-up finds {describe(live)}")


async def _delete(session: BasicSession, intent: Intent, reservation_id: str) -> None:
    refusal = await session.require_answer(
        partial(session.delete, intent, reservation_id), partial(session.find, session.new_hold())
    )
    require(refusal is None, f"DELETE: {refusal}")


def _stock(session: BasicSession) -> int:
    if session.config.stock is None:
        raise NotTested("this check needs --stock")
    return session.config.stock


BASIC: Final = Contract(
    name="basic",
    checks=(
        # First, because it needs the whole stock, and a later check could not release everything.
        reusable,
        taken,
        post,
        found,
        unknown,
        apart,
        repeat,
        gone,
        one_of_two,
        twice,
        unknown_delete,
        too_many,
        unknown_item,
        unusual,
    ),
    consequences={
        "post": "an item is never shown as RESERVED, or is shown as RESERVED while nothing is held",
        "look-up": "after a time-out the reservation is not found, so it is made again; a removed item stays reserved",
        "unknown": "nothing is ever reserved, or reservations of other clients are adopted and released",
        "apart": "an item is shown as RESERVED with the units of another item",
        "repeat": "a POST that arrives twice or late leaves more or fewer units reserved than the cart shows",
        "delete": "the units of a removed item stay reserved, or the units of an item in the cart are released",
        "gone": "a repeated or late removal is retried forever, or releases another reservation",
        "refusal": "an unavailable item is retried forever, or is REJECTED while units are held for it",
        "text": "an item with such a name stays PENDING, or its look-up finds another item",
    },
    leftover_lifetime="stays until it is deleted",
)
