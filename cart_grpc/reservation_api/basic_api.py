"""The exercise's Reservation API: POST reserves, GET looks up what is live, DELETE gives it back.

    POST   {base}                   {id, item, quantity} → {reservation_id}; once more, and it reserves once more
    GET    {base}?id=               → [{reservation_id, id, item, quantity}], all that is live for that id
    DELETE {base}/{reservation_id}  → 2xx; 404 if it is gone

Any of them may take effect after it was given up, so none of this can be exactly once. What can be done: before
anything is sent for a hold, an attempt is opened in the row, which makes every other wait until the request can take
effect no more; and only what is looked up after that is believed. A release changes nothing that anybody wants, so it
may look and delete at any time, but is done only once no attempt is open and nothing is found.
"""

import asyncio
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from cart_grpc.protocol.reservation import Decision, Disposition, Intent, Observed, PermanentFailure
from cart_grpc.reservation_api import wire
from cart_grpc.reservation_api.api import UNRECORDED, Answer, Attempt, NoAnswerError
from cart_grpc.reservation_api.http_client import REFUSALS, HttpClient

_MAX_ID: Final = 1000


@dataclass(frozen=True, slots=True)
class Live:
    """A reservation that the API says is live."""

    reservation_id: str
    quantity: int

    @property
    def order(self) -> tuple[int, str]:
        """The same for everybody who looks, and that of the numbers where the ids are numbers."""
        return len(self.reservation_id), self.reservation_id


class BasicReservationApi:
    """Implements ReservationApi at `base_url` over `client`, which is closed with it."""

    def __init__(self, base_url: str, client: HttpClient) -> None:
        self._base = base_url.rstrip("/")
        self._client = client

    async def apply(self, intent: Intent, *, timeout: float, attempt: Attempt = UNRECORDED) -> Answer:
        """See ReservationApi.apply. Makes several calls, each at most once, within one `timeout`.

        COMMIT keeps the hold: it never expires, and there is nothing else to say about it.
        """
        call = self.begin(intent, timeout=timeout)
        if intent.disposition is Disposition.RELEASE:
            return await _release(call, attempt)
        return await _hold(call, attempt)

    def begin(self, intent: Intent, *, timeout: float) -> "BasicCall":
        """Return the calls that can be made for `intent` within `timeout` seconds, all together."""
        return BasicCall(self._client, self._base, intent, asyncio.get_running_loop().time() + timeout)

    async def close(self) -> None:
        """See ReservationApi.close."""
        await self._client.close()


async def _hold(call: "BasicCall", attempt: Attempt) -> Answer:
    """Adopt what is there, or make it so that exactly that is there."""
    if attempt.pending:
        raise NoAnswerError("UNCERTAIN", "an earlier request may still take effect", reached=None)
    live = await call.look_up()
    fitting = [each for each in live if each.quantity == call.intent.quantity]
    kept = min(fitting, key=lambda each: each.order, default=None)
    if kept is not None and len(live) == 1:
        return call.to_decision(live)
    # A DELETE that comes late could take what a later look-up has adopted: it, too, needs the attempt.
    if not await attempt.open(call.seconds_left()):
        raise NoAnswerError("ABORTED", "the claim was taken over, or its intent changed", reached=True)
    for each in live:
        if each is not kept and (refusal := await call.delete(each.reservation_id)):
            raise NoAnswerError(refusal.reason, refusal.message, reached=True)
    posted = await call.post() if kept is None else kept.reservation_id
    if not isinstance(posted, PermanentFailure):
        return call.to_decision(live)
    if call.intent.disposition is Disposition.COMMIT:
        return Decision(call.intent.reservation_id, call.intent.revision, Observed.REJECTED, 0, None, posted.reason)
    return posted


async def _release(call: "BasicCall", attempt: Attempt) -> Answer:
    """Delete what is found until nothing is; done once nothing can come after it."""
    live = await call.look_up()
    for each in live:
        if refusal := await call.delete(each.reservation_id):
            return refusal
    if live and await call.look_up():
        raise wire.invalid_answer("what was deleted is still there, or there is more of it")
    if attempt.pending:
        raise NoAnswerError("UNCERTAIN", "a request to reserve may still take effect", reached=True)
    return call.to_decision(live)


class BasicCall:
    """The calls for one intent, until `deadline`, a time of the running loop. Each raises NoAnswerError."""

    def __init__(self, client: HttpClient, base: str, intent: Intent, deadline: float) -> None:
        self.intent = intent
        self._client = client
        self._base = base
        self._deadline = deadline

    def seconds_left(self) -> float:
        """How long is left, asked right before anything is sent: after a pause it must not be sent at all."""
        left = self._deadline - asyncio.get_running_loop().time()
        if left <= 0:
            raise NoAnswerError("DEADLINE_EXCEEDED", "no time is left to send it")
        return left

    async def look_up(self) -> list[Live]:
        """What is live under the intent's id."""
        answer = await self._client.call("GET", self._base, timeout=self.seconds_left(), id=self.intent.reservation_id)
        if answer.status != 200:
            raise answer.to_no_answer(self._client.clock())
        found = answer.to_json()
        if not isinstance(found, list):
            raise wire.invalid_answer("the look-up is not a JSON array")
        return [_to_live(each, self.intent) for each in found]

    async def post(self) -> str | PermanentFailure:
        """Reserve, and return the reservation's id."""
        intent = self.intent
        body = {"id": intent.reservation_id, "item": intent.sku, "quantity": intent.quantity}
        answer = await self._client.call("POST", self._base, body, timeout=self.seconds_left())
        if answer.status in (200, 201):
            return _to_reservation_id(answer.to_object())
        if answer.status not in REFUSALS:
            raise answer.to_no_answer(self._client.clock())
        name, reason, message = answer.to_error()
        return wire.to_permanent_failure(reason, name, message)

    async def delete(self, reservation_id: str) -> PermanentFailure | None:
        """Give a reservation back. None where it is gone."""
        url = f"{self._base}/{quote(reservation_id, safe='')}"
        answer = await self._client.call("DELETE", url, timeout=self.seconds_left())
        if answer.status in (200, 202, 204):
            return None
        if answer.status not in REFUSALS:
            raise answer.to_no_answer(self._client.clock())
        name, reason, message = answer.to_error()
        return None if answer.status == 404 else wire.to_permanent_failure(reason, name, message)

    def to_decision(self, live: list[Live]) -> Decision:
        """The decision that the intent has come true, where `live` was found before."""
        intent = self.intent
        state, quantity = {
            Disposition.HOLD: (Observed.HELD, intent.quantity),
            Disposition.COMMIT: (Observed.COMMITTED, intent.quantity),
            Disposition.RELEASE: (Observed.RELEASED, 0),
        }[intent.disposition]
        return Decision(intent.reservation_id, intent.revision, state, quantity, None, "", len(live))


def _to_live(value: Any, intent: Intent) -> Live:
    if not isinstance(value, dict):
        raise wire.invalid_answer("the look-up lists what is no JSON object")
    # Without its id it could be anybody's, and what is too much is deleted.
    for name, asked, found in (
        ("id", intent.reservation_id, value.get("id")),
        ("item", intent.sku, value.get("item", intent.sku)),
    ):
        if found != asked:
            raise wire.invalid_answer(f"asked about {name} {asked!r}, answered about {found!r}")
    quantity = value.get("quantity")
    if not isinstance(quantity, int) or isinstance(quantity, bool):
        raise wire.invalid_answer("the look-up lists a reservation without a quantity")
    return Live(_to_reservation_id(value), quantity)


def _to_reservation_id(value: dict[str, Any]) -> str:
    """Some number them, some name them."""
    found = value.get("reservation_id")
    text = str(found) if isinstance(found, str | int) and not isinstance(found, bool) else ""
    # As a path, these two would name something else than what was meant.
    if not 0 < len(text) <= _MAX_ID or text in (".", ".."):
        raise wire.invalid_answer("the answer holds no reservation_id")
    return text
