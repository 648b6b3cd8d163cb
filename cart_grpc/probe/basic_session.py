"""The calls of one check of `basic`: it never repeats a POST, and releases every reservation that a POST made."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeVar

from cart_grpc.probe.calls import MAX_TRIES, Log, breaks_contract, call_once, call_with_retries
from cart_grpc.probe.findings import CheckFailed, NotTested, Unreachable
from cart_grpc.probe.session import ProbeConfig
from cart_grpc.protocol.reservation import Disposition, Intent, PermanentFailure
from cart_grpc.reservation_api.api import NoAnswerError

if TYPE_CHECKING:
    # Not imported at run time: it imports aiohttp, which is slow, and most commands do not need it.
    from cart_grpc.reservation_api.basic_api import BasicCall, BasicReservationApi, Live

T = TypeVar("T")

_MAX_QUANTITY: Final = 2**31 - 1


@dataclass(slots=True)
class _Posted:
    """The POSTs of one id, and the reservations that they are known to have made or that were deleted."""

    intent: Intent
    posts: list[asyncio.Task[str | PermanentFailure]] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    deleted: set[str] = field(default_factory=set)


class BasicSession:
    """Sends the calls of one check to `api`. `new_id` makes unique ids."""

    def __init__(self, api: "BasicReservationApi", config: ProbeConfig, log: Log, new_id: Callable[[], str]) -> None:
        self.config = config
        self.new_id = new_id
        self._api = api
        self._log = log
        self._posted: dict[str, _Posted] = {}
        self._unsafe_because = ""

    @property
    def too_many(self) -> int:
        """A quantity that should exceed the stock."""
        return _MAX_QUANTITY if self.config.stock is None else self.config.stock + 1

    def new_hold(self, quantity: int = 2, *, item: str = "") -> Intent:
        """Return a HOLD with a new id, without sending it."""
        return Intent(self.new_id(), 1, item or self.config.sku, quantity, Disposition.HOLD, 0, {})

    async def check_reachable(self) -> None:
        """Raises Unreachable if a look-up fails as it does only without a working Reservation API."""
        try:
            await self.look_up(self.new_hold())
        except NoAnswerError as error:
            if error.code == "DEADLINE_EXCEEDED" or (error.reached and not breaks_contract(error)):
                return
            # 404 can be an unknown path of any web server, or an unknown id. Only an API accepts a POST.
            if not (error.code == "HTTP_404" or breaks_contract(error)) or not await self._accepts_posts():
                raise Unreachable(str(error)) from None

    async def prepare(self) -> None:
        """Forbid POSTs if a look-up cannot show which reservations are ours. Raises NoAnswerError."""
        try:
            live = await self.find(self.new_hold())
        except NoAnswerError as error:
            if not breaks_contract(error):
                raise
            self._unsafe_because = f"the probe reserves nothing if look-ups do not work: {error}"
        else:
            if live:
                self._unsafe_because = (
                    "the probe reserves nothing: a look-up shows reservations of others, which it would release"
                )

    async def post(self, intent: Intent) -> str | PermanentFailure:
        """Reserve once and return the reservation's id. Raises NoAnswerError, or NotTested if POSTs are forbidden."""
        if self._unsafe_because:
            raise NotTested(self._unsafe_because)
        # Shielded: interrupting the probe must not cancel a POST in flight, whose effect would be unknown.
        post = asyncio.create_task(call_once(self._log, self._begin(intent).post))
        self._posted.setdefault(intent.reservation_id, _Posted(intent)).posts.append(post)
        return await asyncio.shield(post)

    async def look_up(self, intent: Intent) -> list["Live"]:
        """Return the live reservations of the intent's id. Raises NoAnswerError."""
        live = await call_with_retries(self._log, lambda: self._begin(intent).look_up())
        if posted := self._posted.get(intent.reservation_id):
            posted.seen |= {each.reservation_id for each in live}
        return live

    async def delete(self, intent: Intent, reservation_id: str) -> PermanentFailure | None:
        """Delete a reservation of the intent's id, with retries. Returns None if it is gone. Raises NoAnswerError."""
        refusal = await call_with_retries(self._log, lambda: self._begin(intent).delete(reservation_id))
        if refusal is None and intent.reservation_id in self._posted:
            self._posted[intent.reservation_id].deleted.add(reservation_id)
        return refusal

    async def find(self, intent: Intent) -> list["Live"]:
        """Return the result of `look_up`, or an empty list after a 404. Raises NoAnswerError."""
        try:
            return await self.look_up(intent)
        except NoAnswerError as error:
            if error.code == "HTTP_404":
                return []
            raise

    async def prepare_post(self, intent: Intent) -> str:
        """Post `intent` as a precondition of a check. Raises NotTested unless it is reserved, and NoAnswerError."""
        answer = await as_precondition(self.post(intent))
        if isinstance(answer, PermanentFailure):
            raise NotTested(f"this check needs a reservation: {answer}")
        return answer

    async def prepare_reservation(self, intent: Intent) -> "Live":
        """Post `intent` and look it up as a precondition. Raises NotTested unless it is found, and NoAnswerError."""
        await self.prepare_post(intent)
        live = await as_precondition(self.find(intent))
        if len(live) != 1:
            raise NotTested(f"this check needs a reservation: a look-up finds {describe(live)}")
        return live[0]

    async def require_answer(self, ask: Callable[[], Awaitable[T]], other: Callable[[], Awaitable[object]]) -> T:
        """Return the result of `ask`. Raises CheckFailed if only `other` ever gets an answer, else NoAnswerError."""
        failure = ""
        for _ in range(MAX_TRIES):
            try:
                return await ask()
            except NoAnswerError as error:
                if breaks_contract(error):
                    raise
                failure = str(error)
            await other()
        raise CheckFailed(f"{failure}, each time")

    async def release_all(self) -> None:
        """Delete every reservation that a POST made, answered or not; note in the log what cannot be deleted."""
        posted = list(self._posted.values())
        ends = await asyncio.gather(*map(self._release, posted), return_exceptions=True)
        failed = [(each, end) for each, end in zip(posted, ends, strict=True) if end is not None]
        self._log.left_behind += [f"{each.intent.reservation_id}: {end}" for each, end in failed]

    async def _release(self, posted: _Posted) -> None:
        """Delete the reservations of `posted`. Raises NotTested or NoAnswerError if some are left or may appear."""
        intent, answers = posted.intent, await asyncio.gather(*posted.posts, return_exceptions=True)
        # Include the ids in the answers to POST: the look-up may be broken.
        posted.seen |= (answered := {answer for answer in answers if isinstance(answer, str)})
        for tries_left in reversed(range(MAX_TRIES)):
            left = sorted(posted.seen - posted.deleted)
            ends = await asyncio.gather(*(self.delete(intent, each) for each in left), return_exceptions=True)
            live = await self.find(intent)
            if posted.seen == posted.deleted and not live:
                break
            if not tries_left:
                deletes = ", ".join(map(str, filter(None, ends))) or "deleted"
                raise NotTested(f"{deletes}, but a look-up finds {describe(live)}")
        self._log.released += len(posted.seen)
        silent = [each for each in answers if isinstance(each, NoAnswerError) and not breaks_contract(each)]
        if len(silent) > len(posted.seen - answered):
            raise NotTested(f"a look-up finds nothing, but a POST may still take effect: {silent[0]}")

    async def _accepts_posts(self) -> bool:
        try:
            await self.post(self.new_hold(1))
        except NoAnswerError:
            return False
        return True

    def _begin(self, intent: Intent) -> "BasicCall":
        return self._api.begin(intent, timeout=self.config.timeout)


async def as_precondition(call: Awaitable[T]) -> T:
    """Return the result of `call`. Raises NotTested if the answer breaks the contract, and NoAnswerError."""
    try:
        return await call
    except NoAnswerError as error:
        if breaks_contract(error):
            raise NotTested(f"this check needs a reservation: {error}") from None
        raise


def describe(live: list["Live"]) -> str:
    """Return the reservations in a few words."""
    found = ", ".join(f"{each.quantity} as {each.reservation_id}" for each in live)
    return found or "nothing"
