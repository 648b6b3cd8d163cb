"""Durations: the forms that people write, and the form that is printed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cart_grpc.units import format_duration, parse_duration, to_us


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        ("2.5", 2.5),
        (" 15m ", 900),
        ("15m", 900),
        ("1h30m", 5400),
        ("1.5h", 5400),
        ("8d", 691_200),
        ("1w", 604_800),
        ("500ms", 0.5),
        ("1m500ms", 60.5),
        ("0.3ms", 0.0003),
        ("0", 0),
        ("PT15M", 900),
        ("PT1H30M", 5400),
        ("P1DT12H", 129_600),
        ("P2W", 1_209_600),
        ("PT0.5S", 0.5),
    ],
)
def test_a_duration_may_be_written_as_seconds_with_units_or_as_iso_8601(text: str, seconds: float) -> None:
    assert parse_duration(text) == to_us(seconds)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "x",
        "-1",
        "+1",
        "1e3",
        "nan",
        "inf",
        ".5",
        "1.",
        "1 h",
        "1s1m",
        "1m1",
        "5sec",
        "15M",
        "٣s",
        "h",
        "1y",
        "P",
        "PT",
        "P1DT",
        "P1M",
        "P1Y",
        "pt15m",
        "PT15m",
        "1:30",
        "9" * 30,
    ],
)
def test_nonsense_is_refused_with_the_valid_forms(text: str) -> None:
    with pytest.raises(ValueError, match=r"^must be a duration such as 90, 90s, 500ms, 15m, 1h30m, 8d or PT15M$"):
        parse_duration(text)


@given(st.integers(0, 10**15))
def test_a_printed_duration_is_read_back_exactly(us: int) -> None:
    assert parse_duration(format_duration(us)) == us


@pytest.mark.parametrize(
    ("us", "text"), [(0, "0s"), (1, "0.000001s"), (900_000_000, "15m"), (90_500_000, "1m30.5s"), (to_us(691_200), "8d")]
)
def test_a_duration_is_printed_in_the_largest_units(us: int, text: str) -> None:
    assert format_duration(us) == text
