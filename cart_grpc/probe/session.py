"""One check's conversation with the API: it asks, it counts what is really held, and it gives everything back."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, TypeVar

from cart_grpc.probe.calls import SECOND, Log, breaks_contract, call_again
from cart_grpc.probe.findings import Broken, NobodyThere, NotTested
from cart_grpc.protocol.reservation import Decision, Disposition, Intent, Observed, PermanentFailure, StaleRevision
from cart_grpc.reservation_api.api import Answer, AuditableApi, NoAnswerError

T = TypeVar("T")

LONG: Final = 600 * SECOND
"""How long a hold is asked for where its end does not matter: it outlasts slow checks, and is soon over if stuck."""

_MOST: Final = 2**31 - 1


@dataclass(frozen=True, slots=True)
class ProbeConfig:
    """What to probe with.

    `sku` is what is held, `stock` how many pieces of it are free, None if that is not known. A hold that is let run out
    is asked for `ttl` microseconds; 0: none is. `commit` allows to sell two pieces, which cannot be taken back.
    `timeout` is in seconds, for one call.
    """

    sku: str = "cart-grpc-probe"
    stock: int | None = None
    ttl: int = 5 * SECOND
    commit: bool = False
    timeout: float = 30.0


class Session:
    """Asks `api`. `clock` tells the time in microseconds, `new_id` makes UUIDv7s."""

    def __init__(
        self, api: AuditableApi, config: ProbeConfig, log: Log, clock: Callable[[], int], new_id: Callable[[], str]
    ) -> None:
        self.config = config
        self.clock = clock
        self.new_id = new_id
        self._api = api
        self._log = log
        self._asked: dict[str, Intent] = {}
        self._sold: set[str] = set()

    @property
    def free(self) -> int | None:
        """How many pieces are free while this session holds none, None if that is not known."""
        return None if self.config.stock is None else self.config.stock - self._log.sold

    @property
    def too_many(self) -> int:
        """A quantity that there should not be."""
        return _MOST if self.free is None else self.free + 1

    def hold(self, quantity: int = 2, *, revision: int = 1, ttl_us: int = LONG) -> Intent:
        """Return a HOLD of a new reservation."""
        labels = {"client": "cart-grpc-probe"}
        return Intent(self.new_id(), revision, self.config.sku, quantity, Disposition.HOLD, ttl_us, labels)

    async def ask(self, intent: Intent) -> Answer:
        """Send `intent` and return the answer. Raises NoAnswerError if there is none after a few tries."""
        before = self._asked.get(intent.reservation_id, intent)
        if intent.reservation_id not in self._sold:
            self._asked[intent.reservation_id] = max(intent, before, key=_revision)
        answer = await self._call(self._api.apply, intent)
        if isinstance(answer, PermanentFailure) and self._asked.get(intent.reservation_id) is intent:
            # What was never decided need not be surpassed, and perhaps cannot be.
            self._asked[intent.reservation_id] = before
        return answer

    async def ask_all(self, intents: Sequence[Intent]) -> list[Answer]:
        """Send all of them at once and return the answers, in order. Raises NoAnswerError if one has none."""
        tasks = [asyncio.ensure_future(self.ask(intent)) for intent in intents]
        await asyncio.gather(*tasks, return_exceptions=True)
        return [task.result() for task in tasks]

    async def find(self, reservation_id: str) -> Decision | None:
        """Read one reservation. Raises NoAnswerError."""
        return await self._call(self._api.find, reservation_id)

    async def look_up(self, reservation_ids: Sequence[str]) -> tuple[list[Decision], list[str]]:
        """Read several: what is known, and the ids that are not. Raises NoAnswerError."""
        return await self._call(self._api.look_up, reservation_ids)

    async def held(self, intent: Intent) -> Decision:
        """Have `intent` held, for a check to begin with. Raises NotTested if it is not, NoAnswerError."""
        try:
            answer = await self.ask(intent)
        except NoAnswerError as error:
            if breaks_contract(error):
                raise NotTested(f"there is no hold to try it on: {error}") from None
            raise
        if isinstance(answer, Decision) and answer.state is Observed.HELD:
            return answer
        raise NotTested(f"there is no hold to try it on: {say(answer)}")

    async def refused(self, intent: Intent) -> Decision:
        """Have `intent`, which asks for more than there is, decided as REJECTED.

        Raises Broken if it is not although it must be, NotTested if nobody knows whether it must, NoAnswerError.
        """
        answer = await self.ask(intent)
        if isinstance(answer, Decision) and answer.state is Observed.REJECTED:
            return answer
        if self.free is None:
            raise NotTested(f"asked for {intent.quantity}: {say(answer)}; --stock would say how many there are")
        raise Broken(f"asked for {intent.quantity}, more than there are: {say(answer)}")

    async def greet(self) -> None:
        """Raise NobodyThere if a HOLD fails in a way that only a server which does not work fails in."""
        try:
            await self.ask(self.hold(1))
        except NoAnswerError as error:
            if error.code == "DEADLINE_EXCEEDED" or (error.reached and not await self._is_web_server(error)):
                return
            raise NobodyThere(str(error)) from None

    async def begin(self) -> None:
        """Raise NotTested unless nothing is held: what one check could not give back is not the fault of the next."""
        try:
            await self.count(0)
        except Broken:
            raise NotTested("the stock is not what --stock says, or no longer since an earlier check") from None

    async def count(self, held: int) -> None:
        """Raise Broken unless `held` pieces are held, no more and no fewer. Without a known stock nobody can tell."""
        if self.free is None:
            return
        free = self.free - held
        greedy, modest = self.hold(free + 1), self.hold(free)
        answer = await self.ask(greedy)
        if is_held(answer):
            raise Broken(f"{held} should be held, but another reservation got {free + 1} of {self.free}")
        await self.give_back(greedy.reservation_id)
        if free:
            answer = await self.ask(modest)
            if not is_held(answer):
                raise Broken(f"{held} should be held, but another reservation of {free} of {self.free}: {say(answer)}")
            await self.give_back(modest.reservation_id)

    def sell(self, intent: Intent) -> None:
        """Let `intent` keep what it was sold."""
        self._log.sold += intent.quantity
        self._sold.add(intent.reservation_id)
        del self._asked[intent.reservation_id]

    async def give_back(self, reservation_id: str) -> None:
        """Release a reservation of this session. Raises NotTested if the API refuses, NoAnswerError."""
        last = self._asked[reservation_id]
        release = replace(last, revision=last.revision + 1, disposition=Disposition.RELEASE)
        answer = await self._call(self._api.apply, release)
        if isinstance(answer, StaleRevision):
            answer = await self._call(self._api.apply, replace(release, revision=answer.current.revision + 1))
        if not (isinstance(answer, Decision) and answer.state is Observed.RELEASED):
            raise NotTested(f"it cannot be released: {say(answer)}")
        # Only now: what is cut short here is tried again at the end.
        del self._asked[reservation_id]
        self._log.released += 1

    async def end(self) -> None:
        """Release everything that was ever asked for, answered or not, and note in the log what cannot be."""
        ids = list(self._asked)
        ends = await asyncio.gather(*map(self.give_back, ids), return_exceptions=True)
        self._log.stuck += [f"{one}: {end}" for one, end in zip(ids, ends, strict=True) if end is not None]

    async def _is_web_server(self, error: NoAnswerError) -> bool:
        """Whether what answered nonsense has nothing to be read either: the address or the path is wrong."""
        if not breaks_contract(error):
            return False
        try:
            await self.find(self.new_id())
        except NoAnswerError:
            return True
        return False

    async def _call(self, method: Callable[..., Awaitable[T]], subject: object) -> T:
        return await call_again(self._log, partial(method, subject, timeout=self.config.timeout))


def is_held(answer: Answer) -> bool:
    """Whether all that was asked for is held. An answer with another quantity is no answer."""
    return isinstance(answer, Decision) and answer.state is Observed.HELD


def say(answer: Answer) -> str:
    """Return `answer` in a few words."""
    if isinstance(answer, StaleRevision):
        return f"ABORTED, revision {answer.current.revision} is {say(answer.current)}"
    if not isinstance(answer, Decision):
        return f"error {answer}"
    granted = f" {answer.granted_quantity}" if answer.granted_quantity else ""
    if answer.state is Observed.REJECTED:
        return f"REJECTED {answer.reason}, {answer.granted_quantity} held"
    return f"{answer.state.name}{granted}"


def _revision(intent: Intent) -> int:
    return intent.revision
