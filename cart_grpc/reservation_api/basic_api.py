"""The exercise's Reservation API, the `basic` contract: POST reserves, GET looks up, DELETE releases.

    POST   {base}                   {id, item, quantity} → {reservation_id}; a repeated POST reserves again
    GET    {base}?id=               → [{reservation_id, id, item, quantity}], all live reservations of that id
    DELETE {base}/{reservation_id}  → 2xx; 404 if there is none

A request may take effect after its caller gave up, so exactly once is impossible. The client comes as close as it can.
Before it sends anything for a hold, it records an open attempt in the row. Every later attempt then waits until that
request can no longer take effect, and trusts only look-ups made after that. A release may look up and delete at any
time, because no item needs the reservations that it deletes. It is done when no attempt is open and a look-up finds
nothing.
"""

import asyncio
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from cart_grpc.protocol.reservation import Decision, Disposition, Intent, Observed, PermanentFailure
from cart_grpc.reservation_api import wire
from cart_grpc.reservation_api.api import UNRECORDED, Answer, Attempt, NoAnswerError, SingleCalls
from cart_grpc.reservation_api.http_client import REFUSALS, HttpClient
from cart_grpc.units import to_us


@dataclass(frozen=True, slots=True)
class Live:
    """A live reservation, as the API lists it."""

    reservation_id: str
    quantity: int

    @property
    def order(self) -> tuple[int, str]:
        """A sort key that is the same on every replica. It sorts numeric ids by number."""
        return len(self.reservation_id), self.reservation_id


class BasicReservationApi(SingleCalls):
    """Implements ReservationApi at `base_url` over `client`. Owns the client."""

    def __init__(self, base_url: str, client: HttpClient) -> None:
        self._base = base_url.rstrip("/")
        self._client = client

    async def apply(self, intent: Intent, *, timeout: float, attempt: Attempt = UNRECORDED) -> Answer:
        """See ReservationApi.apply. Makes several HTTP calls, each at most once, within one `timeout`.

        COMMIT keeps the hold, which never expires: the contract has no other message for it.
        """
        call = self.begin(intent, timeout=timeout)
        if intent.disposition is Disposition.RELEASE:
            return await _release(call, attempt)
        return await _hold(call, attempt)

    def begin(self, intent: Intent, *, timeout: float) -> "BasicCall":
        """Return the HTTP calls for `intent`, which share one `timeout` in seconds."""
        return BasicCall(self._client, self._base, intent, asyncio.get_running_loop().time() + timeout)

    async def close(self) -> None:
        """See ReservationApi.close."""
        await self._client.close()


async def _hold(call: "BasicCall", attempt: Attempt) -> Answer:
    """Adopt one live reservation that matches, or delete those that do not and reserve."""
    if attempt.uncertain_us:
        raise NoAnswerError("UNCERTAIN", "an earlier request may still take effect", reached=None)
    live = await call.look_up()
    fitting = [each for each in live if each.quantity == call.intent.quantity]
    kept = min(fitting, key=lambda each: each.order, default=None)
    if kept is not None and len(live) == 1:
        return call.to_decision(live)
    # A DELETE needs the open attempt too: if it takes effect late, it could delete a reservation adopted meanwhile.
    if not await attempt.open(to_us(call.seconds_left())):
        raise NoAnswerError("ABORTED", "the claim was overtaken, or its intent has changed", reached=True)
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
    """Delete all live reservations. The release is done when no earlier request can still reserve."""
    live = await call.look_up()
    for each in live:
        if refusal := await call.delete(each.reservation_id):
            return refusal
    if live and await call.look_up():
        raise wire.invalid_answer("a deleted reservation is still listed, or another one has appeared")
    if attempt.uncertain_us:
        raise NoAnswerError("UNCERTAIN", "an earlier request to reserve may still take effect", reached=True)
    return call.to_decision(live)


class BasicCall:
    """The HTTP calls for one intent, until `deadline` on the running loop's clock. Each call raises NoAnswerError."""

    def __init__(self, client: HttpClient, base: str, intent: Intent, deadline: float) -> None:
        self.intent = intent
        self._client = client
        self._base = base
        self._deadline = deadline

    def seconds_left(self) -> float:
        """Return the seconds left. Raises NoAnswerError at 0: a process that was suspended must not send late."""
        left = self._deadline - asyncio.get_running_loop().time()
        if left <= 0:
            raise NoAnswerError("DEADLINE_EXCEEDED", "no time is left for the call")
        return left

    async def look_up(self) -> list[Live]:
        """Return the live reservations of the intent's id."""
        answer = await self._client.call(
            "GET",
            self._base,
            timeout=self.seconds_left(),
            max_bytes=wire.MAX_LOOKUP_BYTES,
            id=self.intent.reservation_id,
        )
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
        """Delete a reservation. Returns None if it is gone, else the API's refusal."""
        url = f"{self._base}/{quote(reservation_id, safe='')}"
        answer = await self._client.call("DELETE", url, timeout=self.seconds_left())
        if answer.status in (200, 202, 204):
            return None
        if answer.status not in REFUSALS:
            raise answer.to_no_answer(self._client.clock())
        name, reason, message = answer.to_error()
        return None if answer.status == 404 else wire.to_permanent_failure(reason, name, message)

    def to_decision(self, live: list[Live]) -> Decision:
        """Return the decision that the intent is fulfilled. `live` is the result of the first look-up."""
        intent = self.intent
        state, quantity = {
            Disposition.HOLD: (Observed.HELD, intent.quantity),
            Disposition.COMMIT: (Observed.COMMITTED, intent.quantity),
            Disposition.RELEASE: (Observed.RELEASED, 0),
        }[intent.disposition]
        return Decision(intent.reservation_id, intent.revision, state, quantity, None, "", len(live))


def _to_live(value: Any, intent: Intent) -> Live:
    if not isinstance(value, dict):
        raise wire.invalid_answer("the look-up lists something that is not a JSON object")
    # Surplus reservations are deleted, so each must prove that it belongs to our id.
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
    """Return the id as text: some APIs number their reservations."""
    found = value.get("reservation_id")
    text = str(found) if isinstance(found, str | int) and not isinstance(found, bool) else ""
    # In a path, "." and ".." would name another resource.
    if not wire.is_clean_id(text) or text in (".", ".."):
        raise wire.invalid_answer("the answer contains no valid reservation_id")
    return text
