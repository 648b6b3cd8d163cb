"""The circuit breaker: when it opens, which calls it allows while open, and when it closes."""

from cart_grpc.background.breaker import Breaker
from cart_grpc.units import US_PER_SECOND
from tests.background.clock import MonotonicClock


def test_a_breaker_opens_only_after_failures_in_a_row() -> None:
    breaker = Breaker(MonotonicClock(), threshold=3, probe_interval_us=US_PER_SECOND)
    for _ in range(2):
        breaker.record_failure()
    breaker.record_success()
    assert not any(breaker.record_failure() for _ in range(2))
    assert breaker.allowed_calls(7) == 7
    assert breaker.record_failure()
    assert breaker.allowed_calls(7) == 0


def test_a_hanging_probe_does_not_delay_the_next_one() -> None:
    clock = MonotonicClock()
    breaker = Breaker(clock, threshold=1, probe_interval_us=US_PER_SECOND)
    breaker.record_failure()
    assert breaker.until_probe_us() == US_PER_SECOND
    clock.now += US_PER_SECOND
    assert breaker.allowed_calls(7) == 1
    breaker.record_probe()
    assert breaker.allowed_calls(7) == 0
    clock.now += US_PER_SECOND
    assert breaker.allowed_calls(7) == 1
    assert breaker.record_success()
    assert (breaker.allowed_calls(7), breaker.until_probe_us()) == (7, 0)


def test_an_open_breaker_knows_how_long_it_has_been_open() -> None:
    clock = MonotonicClock()
    breaker = Breaker(clock, threshold=2, probe_interval_us=US_PER_SECOND)
    breaker.record_failure()
    assert breaker.find_open_us() is None
    breaker.record_failure()
    clock.now += 3 * US_PER_SECOND
    breaker.record_failure()
    assert breaker.find_open_us() == 3 * US_PER_SECOND
    breaker.record_success()
    assert breaker.find_open_us() is None
