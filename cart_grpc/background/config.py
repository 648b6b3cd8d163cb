"""The reconciler's configuration."""

from dataclasses import dataclass

from cart_grpc.units import to_us


@dataclass(frozen=True, slots=True)
class ReconcilerConfig:
    """How the reconciler calls the Reservation API. The settings `CART_RESERVATION_…` explain each value.

    `max_in_flight` bounds the claims whose calls have not ended, in each lane. `grace_us` is used by the
    `basic` contract only.
    """

    call_timeout_us: int = to_us(120)
    grace_us: int = to_us(60)
    max_in_flight: int = 1_000
    poll_interval_us: int = to_us(0.5)
    lease_us: int = to_us(15)
    backoff_initial_us: int = to_us(0.5)
    backoff_max_us: int = to_us(60)
    breaker_threshold: int = 5
    probe_interval_us: int = to_us(1)

    @property
    def longest_attempt_us(self) -> int:
        """For how long a request of the `basic` contract may take effect after it was sent."""
        return self.call_timeout_us + self.grace_us
