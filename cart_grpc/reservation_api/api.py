"""The interface to the Reservation API that all transports implement.

If the API answers, the answer is a value, even if it is a refusal. If no valid answer comes, NoAnswerError is raised:
the message may or may not have taken effect. The reconciler turns this exception into the value NoAnswer.
"""

from collections.abc import AsyncGenerator, Sequence
from enum import Enum
from typing import ClassVar, Final, NamedTuple, Protocol, final

from cart_grpc.protocol.reservation import Answer, Decision, Intent, PermanentFailure, StaleRevision

__all__ = [
    "DENIALS",
    "UNRECORDED",
    "Answer",
    "Applied",
    "Attempt",
    "AuditableApi",
    "BatchesUnsupported",
    "Decision",
    "Intent",
    "NoAnswerError",
    "PermanentFailure",
    "ReservationApi",
    "SingleCalls",
    "StaleRevision",
    "Style",
]  # fmt: skip


class NoAnswerError(Exception):
    """No answer, or an invalid one: the message may or may not have taken effect.

    `code` is the name of a gRPC status code, `HTTP_<status>` or `INVALID_ANSWER`. `retry_after_us` is how long the API
    asked us to wait, None if it did not. `reached` is False if the call counts as a failure of the API. It is True if a
    working API throttled the call or sent an invalid answer, and None if the API was not called at all.
    """

    def __init__(
        self, code: str, message: str, *, retry_after_us: int | None = None, reached: bool | None = False
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.retry_after_us = retry_after_us
        self.reached = reached


DENIALS: Final = frozenset({"UNAUTHENTICATED", "PERMISSION_DENIED", "HTTP_401", "HTTP_403"})
"""The codes with which an API refuses this service, whatever the message is: it does not accept its credentials."""


class BatchesUnsupported(Exception):
    """The API has only single calls, or refuses the batch call as a whole. Nothing of the batch took effect.

    `code` is as in NoAnswerError. One of DENIALS may concern single calls, too, and may end at any time.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}" if message else code)
        self.code = code


class Applied(NamedTuple):
    """The outcome of one intent of a batch. `position` is its index; `outcome` is what `apply` returns or raises."""

    position: int
    outcome: Answer | NoAnswerError


class Attempt(Protocol):
    """The requests sent under one claim.

    `basic` records the attempt before it sends anything: a request may take effect late, and twice if it is sent twice.
    """

    @property
    def uncertain_us(self) -> int:
        """How long an earlier attempt may still take effect, in microseconds; 0 if it cannot."""
        ...

    async def open(self, timeout_us: int) -> bool:
        """Record that this attempt is open, before a request with this timeout is sent.

        Returns whether the request may be sent. It may not if the claim was overtaken or the database does not answer.
        """
        ...


@final
class _Unrecorded:
    uncertain_us = 0

    async def open(self, timeout_us: int) -> bool:
        return True


UNRECORDED: Attempt = _Unrecorded()
"""For callers that keep no rows, such as the probe: every request may be sent."""


class Style(Enum):
    """A way to write a message that means the same as the usual one. For the probe."""

    UNKNOWN_FIELDS = "with fields that the receiver does not know"
    JSON_NUMBERS = "with 64-bit integers as JSON numbers"
    LONG_DURATIONS = "with durations in JSON that end in zeros"


class ReservationApi(Protocol):
    """A Reservation API, over either contract: `cartgrpc.reservation.v1` or `basic`.

    `max_batch`: the most intents that one `apply_batch` takes. 1 if the contract has no batches.
    """

    @property
    def max_batch(self) -> int: ...

    async def apply(self, intent: Intent, *, timeout: float, attempt: Attempt = UNRECORDED) -> Answer:
        """Send `intent` once, without retries, and return the answer for its id and revision.

        `timeout` is in seconds, as in grpc.aio, for the whole call. Only `basic` uses `attempt`.

        Raises NoAnswerError in every other case: a time-out, a broken connection, an answer about another id or
        revision, an invalid answer.
        """
        ...

    def apply_batch(self, intents: Sequence[Intent], *, timeout: float) -> AsyncGenerator[Sequence[Applied], None]:
        """Send up to `max_batch` intents in one call, without retries, and yield their outcomes as they arrive.

        The intents have distinct ids and are of one lane (`protocol.lanes.lane_of`). `timeout` is in seconds
        for the whole call. An outcome is yielded at most once for each intent; an intent without one at the end has no
        answer. Close the generator (`contextlib.aclosing`) to end the call early.

        Raises BatchesUnsupported before any outcome. Raises NoAnswerError if the call as a whole fails: this stands for
        each intent that has no outcome yet.
        """
        ...

    async def close(self) -> None:
        """Close the connections. Calls in flight end with NoAnswerError."""
        ...


class SingleCalls:
    """The part of ReservationApi for an API without batches."""

    max_batch: int = 1

    async def apply_batch(
        self, intents: Sequence[Intent], *, timeout: float
    ) -> AsyncGenerator[Sequence[Applied], None]:
        """See ReservationApi.apply_batch. Always raises BatchesUnsupported."""
        raise BatchesUnsupported("UNIMPLEMENTED", "this contract has only single calls")
        yield


class AuditableApi(ReservationApi, Protocol):
    """A Reservation API that can also be read. Reads are for audits only: no state of a cart depends on them.

    `styles`: the styles in which `apply_as` can write.
    """

    styles: ClassVar[frozenset[Style]]

    async def apply_as(self, style: Style, intent: Intent, *, timeout: float) -> Answer:
        """As `apply`, with the message in `style`."""
        ...

    async def find(self, reservation_id: str, *, timeout: float) -> Decision | None:
        """Return the latest decision about a reservation, None if the API knows none. Raises NoAnswerError."""
        ...

    async def look_up(self, reservation_ids: Sequence[str], *, timeout: float) -> tuple[list[Decision], list[str]]:
        """Return the latest decisions that the API knows, and the ids that it does not know. Raises NoAnswerError."""
        ...
