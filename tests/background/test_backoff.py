"""The pauses between attempts: their bounds and their jitter."""

import random

import pytest

from cart_grpc.background.backoff import SECOND_TRY_MAX_US, SECOND_TRY_MIN_US, next_attempt_us, second_try_us

INITIAL_US, MAX_US = 500_000, 60_000_000


@pytest.fixture(autouse=True)
def seeded() -> None:
    random.seed(1)


@pytest.mark.parametrize(
    ("attempt_count", "bound_us"),
    [(1, INITIAL_US), (2, 2 * INITIAL_US), (7, 64 * INITIAL_US), (8, MAX_US), (1_000_000, MAX_US)],
)
def test_the_bound_doubles_with_each_attempt_up_to_the_maximum(attempt_count: int, bound_us: int) -> None:
    pauses = [next_attempt_us(attempt_count, INITIAL_US, MAX_US) for _ in range(1000)]
    assert min(pauses) >= 0
    assert 0.99 * bound_us < max(pauses) <= bound_us


def test_full_jitter_spreads_the_pauses_from_zero_to_the_bound() -> None:
    pauses = [next_attempt_us(1, INITIAL_US, MAX_US) for _ in range(1000)]
    for tenth in range(10):
        low, high = INITIAL_US * tenth / 10, INITIAL_US * (tenth + 1) / 10
        assert 60 < sum(low <= pause < high for pause in pauses) < 140


def test_the_maximum_applies_to_the_first_pause_too() -> None:
    assert max(next_attempt_us(1, INITIAL_US, 1000) for _ in range(1000)) <= 1000


def test_the_second_try_follows_within_a_quarter_of_a_second() -> None:
    pauses = [second_try_us() for _ in range(1000)]
    assert SECOND_TRY_MIN_US <= min(pauses) < max(pauses) <= SECOND_TRY_MAX_US
