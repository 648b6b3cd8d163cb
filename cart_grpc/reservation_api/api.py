"""What the reconciler needs of a Reservation API, whatever it is reached over.

An answer is a value, even a refusal; no answer is an exception, and says nothing about what took effect.
"""

from collections.abc import Sequence
from typing import Protocol, final

from cart_grpc.protocol.reservation import Answer, Decision, Intent, PermanentFailure, StaleRevision

__all__ = [
    "UNRECORDED",
    "Answer",
    "Attempt",
    "AuditableApi",
    "Decision",
    "Intent",
    "NoAnswerError",
    "PermanentFailure",
    "ReservationApi",
    "StaleRevision",
]  # fmt: skip


class NoAnswerError(Exception):
    """No answer, or none that can be believed: the message may or may not have taken effect.

    `code` is the gRPC status code's name, or `HTTP_<status>`, or `INVALID_ANSWER`; `retry_after_us` is how many
    microseconds the API asked to be left alone, or None; `reached` is True where an API in working order refused
    for load or answered nonsense, so that it should not count as down, and None where it was not even called.
    """

    def __init__(
        self, code: str, message: str, *, retry_after_us: int | None = None, reached: bool | None = False
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.retry_after_us = retry_after_us
        self.reached = reached


class Attempt(Protocol):
    """What is kept of a request that can take effect late, and twice if it is sent twice: the `basic` contract's."""

    @property
    def pending(self) -> int:
        """For how many microseconds an earlier attempt can still take effect; 0 if it cannot."""
        ...

    async def open(self, timeout: float) -> bool:
        """Record that an attempt is made, to be called before anything is sent that lasts `timeout` seconds at most.

        Returns whether it may be sent: not where the claim was taken over, or that could not be found out.
        """
        ...


@final
class _Unrecorded:
    pending = 0

    async def open(self, timeout: float) -> bool:
        return True


UNRECORDED: Attempt = _Unrecorded()
"""For those who keep no rows, such as a probe: everything may be sent."""


class ReservationApi(Protocol):
    """A Reservation API, whichever contract it keeps: `cartgrpc.reservation.v1`, or `basic`, for which `Attempt` is."""

    async def apply(self, intent: Intent, *, timeout: float, attempt: Attempt = UNRECORDED) -> Answer:
        """Send `intent` once, with no retry inside, and return the answer for this id and revision.

        `timeout` is in seconds, for the whole call; `attempt` is the row's. Raises NoAnswerError for everything else: a
        time-out, a broken connection, an answer that names another id or revision or makes no sense.
        """
        ...

    async def close(self) -> None:
        """Close the connections; calls in flight end with NoAnswerError."""
        ...


class AuditableApi(ReservationApi, Protocol):
    """One that can also be read. Reads are for audits: nothing that becomes of a cart depends on them."""

    async def find(self, reservation_id: str, *, timeout: float) -> Decision | None:
        """Return the latest decision about a reservation as of now, None if the API knows of none.

        Raises NoAnswerError for everything else, as `apply` does.
        """
        ...

    async def look_up(self, reservation_ids: Sequence[str], *, timeout: float) -> tuple[list[Decision], list[str]]:
        """Return the latest decisions that are known, as of now, and the ids that are not. Raises NoAnswerError."""
        ...
