"""The limits of repeated lines, on a clock that the test sets."""

from cart_grpc.logs.limits import LINES_PER_WINDOW, MAX_WINDOW_SECONDS, Kind, Limits, Suppressed

REFUSED = Kind("call_refused", 20, "NOT_FOUND", "/GetCart")


class Time:
    """A clock in seconds."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def flood(limits: Limits, kind: Kind = REFUSED, lines: int = 100) -> int:
    """Return how many of so many lines are admitted."""
    return sum(limits.admits(kind) for _ in range(lines))


def test_ten_lines_of_a_kind_are_admitted_in_a_second_and_the_others_are_counted() -> None:
    time = Time()
    limits = Limits(time)
    assert flood(limits) == LINES_PER_WINDOW
    assert limits.take_suppressed() == []
    time.now += 1
    assert limits.take_suppressed() == [Suppressed(REFUSED, 100 - LINES_PER_WINDOW, 1.0)]
    assert limits.take_suppressed() == []


def test_each_event_reason_and_method_has_lines_of_its_own() -> None:
    limits = Limits(Time())
    for kind in (REFUSED, REFUSED._replace(reason="X"), REFUSED._replace(method="X"), REFUSED._replace(event="X")):
        assert flood(limits, kind) == LINES_PER_WINDOW


def test_a_flood_that_lasts_is_ten_lines_a_minute() -> None:
    time = Time()
    limits = Limits(time)
    admitted = 0
    for _ in range(3_600):
        admitted += flood(limits)
        time.now += 1
    assert admitted < (3_600 / MAX_WINDOW_SECONDS + 8) * LINES_PER_WINDOW
    reported = sum(each.lines for each in limits.take_suppressed(is_last=True))
    assert admitted + reported == 360_000


def test_after_a_quiet_time_a_window_is_a_second_again() -> None:
    time = Time()
    limits = Limits(time)
    for _ in range(10):
        flood(limits)
        time.now += MAX_WINDOW_SECONDS
    time.now += MAX_WINDOW_SECONDS
    limits.take_suppressed()
    flood(limits)
    time.now += 1
    [suppressed] = limits.take_suppressed()
    assert suppressed.seconds == 1


def test_lines_below_the_limit_are_not_reported() -> None:
    time = Time()
    limits = Limits(time)
    assert flood(limits, lines=LINES_PER_WINDOW) == LINES_PER_WINDOW
    time.now += 1
    assert limits.take_suppressed(is_last=True) == []
