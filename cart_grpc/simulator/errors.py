"""The errors with which the simulator answers a call. The simulator does not remember them.

    SimulatorError
    ├── BadRequest          the message breaks the contract
    │   └── BodyMismatch    the revision was decided for a different body
    ├── NotReserved         `basic` only: nothing was reserved
    ├── RevisionTooLow      a higher revision was decided
    ├── UnknownReservation  no reservation has this id
    ├── Throttled           too many calls
    ├── NoBatches           only single calls are offered
    ├── Unauthenticated     the call has no valid token
    └── CallFailed          down, stopping or lost
        └── Lost            the message or its response was lost

None of them has an effect, except Lost after a message whose response is lost. `status` has their codes.
"""

from cart_grpc.simulator.rules import StoredReservation


class SimulatorError(Exception):
    """Any error of the simulator. `reason` is UPPER_SNAKE_CASE; callers may see the text."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class BadRequest(SimulatorError):
    """The message breaks the contract and can never succeed."""


class BodyMismatch(BadRequest):
    """The revision was already decided for a different body."""

    def __init__(self, revision: int) -> None:
        super().__init__("REVISION_BODY_MISMATCH", f"revision {revision} was already decided for a different body")


class NotReserved(SimulatorError):
    """Nothing was reserved. In `cartgrpc.reservation.v1` the same `reason` is part of a decision, not an error."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, "nothing was reserved")


class RevisionTooLow(SimulatorError):
    """A higher revision was decided. `current` is the reservation as it is now."""

    def __init__(self, current: StoredReservation) -> None:
        super().__init__("REVISION_OVERTAKEN", f"revision {current.intent.revision} was already decided")
        self.current = current


class UnknownReservation(SimulatorError):
    """No message about this id was ever decided."""

    def __init__(self) -> None:
        super().__init__("UNKNOWN_RESERVATION", "no reservation has this id")


class Throttled(SimulatorError):
    """Too many calls. `retry_after_us` is in microseconds."""

    def __init__(self, retry_after_us: int) -> None:
        super().__init__("THROTTLED", "too many calls; try again later")
        self.retry_after_us = retry_after_us


class NoBatches(SimulatorError):
    """The simulator behaves as an API that has only single calls."""

    def __init__(self) -> None:
        super().__init__("NO_BATCHES", "this API has only single calls")


class Unauthenticated(SimulatorError):
    """The call has no valid token."""

    def __init__(self) -> None:
        super().__init__("TOKEN_INVALID", "the call has no valid bearer token")


class CallFailed(SimulatorError):
    """The simulator is down or stopping, or it lost the message or the response."""

    def __init__(self, message: str) -> None:
        super().__init__("UNAVAILABLE", message)


class Lost(CallFailed):
    """The message or its response was lost. In a batch this is no error: the entry has no result."""
