"""One check's conversation with a `basic` API: no POST is repeated, and whatever came of one is given back."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeVar

from cart_grpc.probe.calls import TRIES, Log, breaks_contract, call_again, call_once
from cart_grpc.probe.findings import Broken, NobodyThere, NotTested
from cart_grpc.probe.session import ProbeConfig
from cart_grpc.protocol.reservation import Disposition, Intent, PermanentFailure
from cart_grpc.reservation_api.api import NoAnswerError

if TYPE_CHECKING:
    # It loads aiohttp, which most commands need not.
    from cart_grpc.reservation_api.basic_api import BasicCall, BasicReservationApi, Live

T = TypeVar("T")

_MOST: Final = 2**31 - 1


@dataclass(slots=True)
class _Posted:
    """What was posted for one id, and the reservations that were seen to come of it."""

    intent: Intent
    posts: list[asyncio.Task[str | PermanentFailure]] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    deleted: set[str] = field(default_factory=set)


class BasicSession:
    """Asks `api`; `new_id` makes ids that nobody has."""

    def __init__(self, api: "BasicReservationApi", config: ProbeConfig, log: Log, new_id: Callable[[], str]) -> None:
        self.config = config
        self.new_id = new_id
        self._api = api
        self._log = log
        self._posted: dict[str, _Posted] = {}
        self._doubt = ""

    @property
    def too_many(self) -> int:
        """A quantity that there should not be."""
        return _MOST if self.config.stock is None else self.config.stock + 1

    def hold(self, quantity: int = 2, *, item: str = "") -> Intent:
        """Return a HOLD under an id of its own, which the API was never asked about."""
        return Intent(self.new_id(), 1, item or self.config.sku, quantity, Disposition.HOLD, 0, {})

    async def greet(self) -> None:
        """Raise NobodyThere if it fails in a way that only a server which does not work fails in."""
        try:
            await self.look_up(self.hold())
        except NoAnswerError as error:
            if error.code == "DEADLINE_EXCEEDED" or (error.reached and not breaks_contract(error)):
                return
            # A web server says so of a path that it does not have, and an API perhaps of an id that it does not know.
            if not (error.code == "HTTP_404" or breaks_contract(error)) or not await self._takes_posts():
                raise NobodyThere(str(error)) from None

    async def begin(self) -> None:
        """Find out whether a look-up tells what is ours. Raises NoAnswerError."""
        try:
            live = await self.find(self.hold())
        except NoAnswerError as error:
            if not breaks_contract(error):
                raise
            self._doubt = f"nothing is reserved where no look-up tells what is there: {error}"
        else:
            if live:
                self._doubt = "nothing is reserved where a look-up finds what others have: it would be given back"

    async def post(self, intent: Intent) -> str | PermanentFailure:
        """Reserve, and return the reservation's id. Raises NoAnswerError, or NotTested if nothing may be reserved."""
        if self._doubt:
            raise NotTested(self._doubt)
        # Whoever stops the probe does not stop what is on its way.
        post = asyncio.create_task(call_once(self._log, self._begin(intent).post))
        self._posted.setdefault(intent.reservation_id, _Posted(intent)).posts.append(post)
        return await asyncio.shield(post)

    async def look_up(self, intent: Intent) -> list["Live"]:
        """Return what is live under the intent's id. Raises NoAnswerError."""
        live = await call_again(self._log, lambda: self._begin(intent).look_up())
        if posted := self._posted.get(intent.reservation_id):
            posted.seen |= {each.reservation_id for each in live}
        return live

    async def delete(self, intent: Intent, reservation_id: str) -> PermanentFailure | None:
        """Give back a reservation of the intent's id; None if it is gone. Raises NoAnswerError after a few tries."""
        refusal = await call_again(self._log, lambda: self._begin(intent).delete(reservation_id))
        if refusal is None and intent.reservation_id in self._posted:
            self._posted[intent.reservation_id].deleted.add(reservation_id)
        return refusal

    async def find(self, intent: Intent) -> list["Live"]:
        """Return what `look_up` does, and nothing where it is not known. Raises NoAnswerError."""
        try:
            return await self.look_up(intent)
        except NoAnswerError as error:
            if error.code == "HTTP_404":
                return []
            raise

    async def reserved(self, intent: Intent) -> str:
        """Have `intent` reserved, for a check to begin with. Raises NotTested if it is not, NoAnswerError."""
        answer = await to_begin_with(self.post(intent))
        if isinstance(answer, PermanentFailure):
            raise NotTested(f"there is no reservation to try it on: {answer}")
        return answer

    async def found(self, intent: Intent) -> "Live":
        """Have `intent` reserved and found, for a check to begin with. Raises NotTested if it is not, NoAnswerError."""
        await self.reserved(intent)
        live = await to_begin_with(self.find(intent))
        if len(live) != 1:
            raise NotTested(f"there is no reservation to try it on: a look-up finds {say(live)}")
        return live[0]

    async def must_answer(self, ask: Callable[[], Awaitable[T]], other: Callable[[], Awaitable[object]]) -> T:
        """Return the result of `ask`. Raises Broken if only `other` ever gets an answer, else NoAnswerError."""
        said = ""
        for _ in range(TRIES):
            try:
                return await ask()
            except NoAnswerError as error:
                if breaks_contract(error):
                    raise
                said = str(error)
            await other()
        raise Broken(f"{said}, each time")

    async def end(self) -> None:
        """Give back whatever came of what was posted, answered or not, and note in the log what cannot be."""
        posted = list(self._posted.values())
        ends = await asyncio.gather(*map(self._give_back, posted), return_exceptions=True)
        failed = [(each, end) for each, end in zip(posted, ends, strict=True) if end is not None]
        self._log.stuck += [f"{each.intent.reservation_id}: {end}" for each, end in failed]

    async def _give_back(self, posted: _Posted) -> None:
        """Raises NotTested and NoAnswerError where something is left, or may be."""
        intent, answers = posted.intent, await asyncio.gather(*posted.posts, return_exceptions=True)
        # Each by the number that the POST told, too: perhaps it is the look-up that is broken.
        posted.seen |= (told := {answer for answer in answers if isinstance(answer, str)})
        for tries_left in reversed(range(TRIES)):
            left = sorted(posted.seen - posted.deleted)
            ends = await asyncio.gather(*(self.delete(intent, each) for each in left), return_exceptions=True)
            live = await self.find(intent)
            if posted.seen == posted.deleted and not live:
                break
            if not tries_left:
                told_last = ", ".join(map(str, filter(None, ends))) or "deleted"
                raise NotTested(f"{told_last}, and a look-up finds {say(live)}")
        self._log.released += len(posted.seen)
        silent = [each for each in answers if isinstance(each, NoAnswerError) and not breaks_contract(each)]
        if len(silent) > len(posted.seen - told):
            raise NotTested(f"nothing is there, but a POST may take effect later: {silent[0]}")

    async def _takes_posts(self) -> bool:
        try:
            await self.post(self.hold(1))
        except NoAnswerError:
            return False
        return True

    def _begin(self, intent: Intent) -> "BasicCall":
        return self._api.begin(intent, timeout=self.config.timeout)


async def to_begin_with(asked: Awaitable[T]) -> T:
    """Return what was `asked`. Raises NotTested where the answer is none that the contract knows, NoAnswerError."""
    try:
        return await asked
    except NoAnswerError as error:
        if breaks_contract(error):
            raise NotTested(f"there is no reservation to try it on: {error}") from None
        raise


def say(live: list["Live"]) -> str:
    """Return what was found, in a few words."""
    found = ", ".join(f"{each.quantity} as {each.reservation_id}" for each in live)
    return found or "nothing"
