"""Why the simulator answers a call with an error. None of them is remembered, none of them had an effect.

    SimulatorError
    ├── BadRequest          the message breaks the contract
    │   └── BodyMismatch    the revision was decided for another body
    ├── Refused             the `basic` contract's: nothing was reserved
    ├── Stale               a higher revision was decided
    ├── UnknownReservation  there is nothing to read
    ├── Throttled           too much; come back later
    └── Unavailable         down, stopping, or the call is said to be lost (it may have had its effect before)

Codes stand in one table, in `status`.
"""

from cart_grpc.simulator.rules import Record


class SimulatorError(Exception):
    """Any of them; `reason` is UPPER_SNAKE_CASE and the text may be shown to callers."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class BadRequest(SimulatorError):
    """The message breaks the contract, and will whenever it is sent."""


class BodyMismatch(BadRequest):
    """The revision was decided already, for another body."""

    def __init__(self, revision: int) -> None:
        super().__init__("REVISION_BODY_MISMATCH", f"revision {revision} was decided for another body")


class Refused(SimulatorError):
    """Nothing was reserved, for a `reason` that `cartgrpc.reservation.v1` would answer as a decision."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, "nothing was reserved")


class Stale(SimulatorError):
    """A higher revision was decided; `current` is what it came to, as of now."""

    def __init__(self, current: Record) -> None:
        super().__init__("REVISION_OVERTAKEN", f"revision {current.intent.revision} was decided already")
        self.current = current


class UnknownReservation(SimulatorError):
    """No message about this id was ever decided."""

    def __init__(self) -> None:
        super().__init__("UNKNOWN_RESERVATION", "there is no reservation with this id")


class Throttled(SimulatorError):
    """Too much; `retry_after` is in microseconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__("THROTTLED", "too many calls; try again later")
        self.retry_after = retry_after


class Unavailable(SimulatorError):
    """Down, stopping, or the answer is lost."""

    def __init__(self, message: str) -> None:
        super().__init__("UNAVAILABLE", message)
