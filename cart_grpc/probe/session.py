"""The calls of one check of `cartgrpc.reservation.v1`: it sends, counts the units that are held, and releases all."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, NoReturn, TypeVar

from cart_grpc.probe.batch_calls import MAX_BATCH_TRIES, Batch
from cart_grpc.probe.calls import Log, breaks_contract, call_with_retries
from cart_grpc.probe.findings import CheckFailed, NotTested, Unreachable
from cart_grpc.protocol.reservation import Decision, Disposition, Intent, Observed, PermanentFailure, StaleRevision
from cart_grpc.reservation_api.api import Answer, AuditableApi, BatchesUnsupported, NoAnswerError, Style
from cart_grpc.units import to_us

T = TypeVar("T")

LONG_TTL_US: Final = to_us(600)
"""The ttl of a hold that must outlast its check. Short enough that a hold left behind does not last long."""

_MAX_QUANTITY: Final = 2**31 - 1


@dataclass(frozen=True, slots=True)
class ProbeConfig:
    """The configuration of the probe.

    The probe holds units of `sku`; `stock` of them are available, None if unknown. Holds that it lets expire have a ttl
    of `ttl_us` microseconds; 0 skips those checks. `commit` allows it to sell five units, which cannot be undone.
    `timeout` is the deadline of one call in seconds.
    """

    sku: str = "cart-grpc-probe"
    stock: int | None = None
    ttl_us: int = to_us(5)
    commit: bool = False
    timeout: float = 30.0


class Session:
    """Sends the messages of one check to `api`. `clock` returns microseconds; `new_id` makes UUIDv7s."""

    def __init__(
        self, api: AuditableApi, config: ProbeConfig, log: Log, clock: Callable[[], int], new_id: Callable[[], str]
    ) -> None:
        self.config = config
        self.clock = clock
        self.new_id = new_id
        self._api = api
        self._log = log
        self._sent: dict[str, Intent] = {}
        self._sold: set[str] = set()

    @property
    def available(self) -> int | None:
        """The number of units that are available if this session holds none, None if unknown."""
        return None if self.config.stock is None else self.config.stock - self._log.sold

    @property
    def too_many(self) -> int:
        """A quantity that should exceed the stock."""
        return _MAX_QUANTITY if self.available is None else self.available + 1

    def new_hold(self, quantity: int = 2, *, revision: int = 1, ttl_us: int = LONG_TTL_US) -> Intent:
        """Return a HOLD of a new reservation, without sending it."""
        labels = {"client": "cart-grpc-probe"}
        return Intent(self.new_id(), revision, self.config.sku, quantity, Disposition.HOLD, ttl_us, labels)

    async def send(self, intent: Intent, style: Style | None = None) -> Answer:
        """Send `intent`, with retries, and return the answer. Raises NoAnswerError, and NotTested for a `style`."""
        if style and style not in self._api.styles:
            raise NotTested("this transport cannot send it")
        before = self._note_sent(intent)
        answer = await self._call(partial(self._api.apply_as, style) if style else self._api.apply, intent)
        self._note_answer(intent, before, answer)
        return answer

    async def send_all(self, intents: Sequence[Intent]) -> list[Answer]:
        """Send `intents` concurrently and return the answers in their order. Raises NoAnswerError if one has none."""
        tasks = [asyncio.ensure_future(self.send(intent)) for intent in intents]
        await asyncio.gather(*tasks, return_exceptions=True)
        return [task.result() for task in tasks]

    async def send_batch(self, intents: Sequence[Intent]) -> Batch:
        """Send `intents` in one call, and again until each has an answer.

        Raises NotTested if the API has only single calls, CheckFailed if it refuses this batch as a whole or leaves an
        entry out each time, and NoAnswerError.
        """
        before = list(map(self._note_sent, intents))
        batch = Batch(self._api, intents, self.config.timeout)
        try:
            await call_with_retries(self._log, batch.send, MAX_BATCH_TRIES)
        except BatchesUnsupported as refusal:
            await self._explain(refusal)
        for position, answer in batch.answers.items():
            self._note_answer(intents[position], before[position], answer)
        return batch

    async def _explain(self, refusal: BatchesUnsupported) -> NoReturn:
        """Find out whether the API refuses all batches or this one."""
        plain = self.new_hold(1)
        self._note_sent(plain)
        try:
            await call_with_retries(self._log, Batch(self._api, [plain], self.config.timeout).send, MAX_BATCH_TRIES)
        except BatchesUnsupported:
            raise NotTested(f"single calls only: {refusal}") from None
        raise CheckFailed(f"the whole batch is refused: {refusal}") from None

    async def find(self, reservation_id: str) -> Decision | None:
        """Read one reservation, None if it is unknown. Raises NoAnswerError."""
        return await self._call(self._api.find, reservation_id)

    async def look_up(self, reservation_ids: Sequence[str]) -> tuple[list[Decision], list[str]]:
        """Read several reservations: the known ones, and the unknown ids. Raises NoAnswerError."""
        return await self._call(self._api.look_up, reservation_ids)

    async def prepare_hold(self, intent: Intent) -> Decision:
        """Send `intent` as a precondition of a check. Raises NotTested unless it is HELD, and NoAnswerError."""
        try:
            answer = await self.send(intent)
        except NoAnswerError as error:
            if breaks_contract(error):
                raise NotTested(f"this check needs a hold: {error}") from None
            raise
        if isinstance(answer, Decision) and answer.state is Observed.HELD:
            return answer
        raise NotTested(f"this check needs a hold: {describe(answer)}")

    async def expect_rejected(self, intent: Intent) -> Decision:
        """Send `intent`, which requests more than the stock, and return the REJECTED decision.

        Any other answer raises CheckFailed, or NotTested if the stock is unknown. Raises NoAnswerError.
        """
        answer = await self.send(intent)
        if isinstance(answer, Decision) and answer.state is Observed.REJECTED:
            return answer
        if self.available is None:
            raise NotTested(f"requested {intent.quantity}: {describe(answer)}; this check needs --stock")
        raise CheckFailed(f"requested {intent.quantity}, more than the stock: {describe(answer)}")

    async def check_reachable(self) -> None:
        """Raises Unreachable if a HOLD fails as it does only without a working Reservation API."""
        try:
            await self.send(self.new_hold(1))
        except NoAnswerError as error:
            if error.code == "DEADLINE_EXCEEDED" or (error.reached and not await self._is_web_server(error)):
                return
            raise Unreachable(str(error)) from None

    async def prepare(self) -> None:
        """Raises NotTested if units are held that an earlier check could not release: they must not fail this check."""
        try:
            await self.check_held(0)
        except CheckFailed:
            raise NotTested("the stock is not --stock, or an earlier check changed it") from None

    async def check_held(self, held: int) -> None:
        """Raises CheckFailed unless exactly `held` units are held. Does nothing if the stock is unknown."""
        if self.available is None:
            return
        rest = self.available - held
        too_large, fitting = self.new_hold(rest + 1), self.new_hold(rest)
        answer = await self.send(too_large)
        if is_held(answer):
            raise CheckFailed(f"{held} should be held, but another reservation got {rest + 1} of {self.available}")
        await self.release(too_large.reservation_id)
        if rest:
            answer = await self.send(fitting)
            if not is_held(answer):
                raise CheckFailed(
                    f"{held} should be held, but another reservation of {rest} of {self.available}: {describe(answer)}"
                )
            await self.release(fitting.reservation_id)

    def keep_sold(self, intent: Intent) -> None:
        """Record that the units of `intent` are sold, so that they are not released."""
        self._log.sold += intent.quantity
        self._sold.add(intent.reservation_id)
        del self._sent[intent.reservation_id]

    async def release(self, reservation_id: str) -> None:
        """Release a reservation of this session. Raises NotTested if the API refuses, NoAnswerError."""
        last = self._sent[reservation_id]
        release = replace(last, revision=last.revision + 1, disposition=Disposition.RELEASE)
        answer = await self._call(self._api.apply, release)
        if isinstance(answer, StaleRevision):
            answer = await self._call(self._api.apply, replace(release, revision=answer.current.revision + 1))
        if not (isinstance(answer, Decision) and answer.state is Observed.RELEASED):
            raise NotTested(f"the reservation cannot be released: {describe(answer)}")
        # Not earlier: release_all retries a release that was interrupted here.
        del self._sent[reservation_id]
        self._log.released += 1

    async def release_all(self) -> None:
        """Release every reservation that was ever sent, answered or not; note in the log what cannot be released."""
        ids = list(self._sent)
        ends = await asyncio.gather(*map(self.release, ids), return_exceptions=True)
        self._log.left_behind += [f"{one}: {end}" for one, end in zip(ids, ends, strict=True) if end is not None]

    def _note_sent(self, intent: Intent) -> Intent:
        """Note what must be released. Returns the message of the highest revision so far."""
        before = self._sent.get(intent.reservation_id, intent)
        holds = intent.disposition is not Disposition.RELEASE or intent.reservation_id in self._sent
        if holds and intent.reservation_id not in self._sold:
            self._sent[intent.reservation_id] = max(intent, before, key=_revision)
        return before

    def _note_answer(self, intent: Intent, before: Intent, answer: Answer) -> None:
        is_latest = self._sent.get(intent.reservation_id) is intent
        if isinstance(answer, PermanentFailure) and is_latest:
            # The API did not decide this revision, so the release need not exceed it, and perhaps cannot.
            self._sent[intent.reservation_id] = before

    async def _is_web_server(self, error: NoAnswerError) -> bool:
        """Whether reads fail, too, after an invalid answer: then the address or the path is wrong."""
        if not breaks_contract(error):
            return False
        try:
            await self.find(self.new_id())
        except NoAnswerError:
            return True
        return False

    async def _call(self, method: Callable[..., Awaitable[T]], subject: object) -> T:
        return await call_with_retries(self._log, partial(method, subject, timeout=self.config.timeout))


def is_held(answer: Answer) -> bool:
    """Whether the requested quantity is held. (An answer with another quantity raised NoAnswerError.)"""
    return isinstance(answer, Decision) and answer.state is Observed.HELD


def describe(answer: Answer) -> str:
    """Return `answer` in a few words."""
    if isinstance(answer, StaleRevision):
        return f"ABORTED, revision {answer.current.revision} is {describe(answer.current)}"
    if not isinstance(answer, Decision):
        return f"error {answer}"
    granted = f" {answer.granted_quantity}" if answer.granted_quantity else ""
    if answer.state is Observed.REJECTED:
        return f"REJECTED {answer.reason}, {answer.granted_quantity} held"
    return f"{answer.state.name}{granted}"


def _revision(intent: Intent) -> int:
    return intent.revision
