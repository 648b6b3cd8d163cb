"""Amounts are exact, and have the decimals of their currency."""

from decimal import Decimal

import pytest
from cartgrpc.v1.cart_pb2 import Money
from hypothesis import given
from hypothesis import strategies as st

from cart_grpc.client.money import MAX_MINOR_UNITS, format_money, money, to_decimal


@pytest.mark.parametrize(
    ("amount", "currency", "minor_units", "shown"),
    [
        ("12.34", "EUR", 1234, "12.34 EUR"),
        ("12.3", "EUR", 1230, "12.30 EUR"),
        (12, "EUR", 1200, "12.00 EUR"),
        (Decimal("12.340"), "EUR", 1234, "12.34 EUR"),
        ("0", "EUR", 0, "0.00 EUR"),
        ("0.01", "EUR", 1, "0.01 EUR"),
        (1200, "JPY", 1200, "1200 JPY"),
        ("1.25", "KWD", 1250, "1.250 KWD"),
        ("1.2345", "CLF", 12345, "1.2345 CLF"),
        ("1e3", "EUR", 100_000, "1000.00 EUR"),
        ("10000000000", "EUR", MAX_MINOR_UNITS, "10000000000.00 EUR"),
    ],
)
def test_an_amount_has_the_decimals_of_its_currency(
    amount: str | int | Decimal, currency: str, minor_units: int, shown: str
) -> None:
    exact = money(amount, currency)
    assert exact == Money(currency_code=currency, minor_units=minor_units)
    assert format_money(exact) == shown


@pytest.mark.parametrize(
    ("amount", "currency", "error"),
    [
        ("12.345", "EUR", "too many decimals: EUR has 2"),
        ("1.5", "JPY", "JPY has 0"),
        ("", "EUR", "not a number"),
        ("12,34", "EUR", "not a number"),
        ("€12", "EUR", "not a number"),
        ("-1", "EUR", "0 to 10000000000.00 EUR"),
        ("NaN", "EUR", "0 to"),
        ("Infinity", "EUR", "0 to"),
        ("10000000000.01", "EUR", "0 to"),
        ("1e999999", "EUR", "0 to"),
        ("1e-999999", "EUR", "too many decimals"),
        ("1", "eur", "not in ISO 4217"),
        ("1", "", "not in ISO 4217"),
        ("1", "ABC", "not in ISO 4217"),
        ("1", "XAU", "no smallest unit"),
    ],
)
def test_a_wrong_amount_is_a_value_error_that_says_why(amount: str, currency: str, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        money(amount, currency)


@pytest.mark.parametrize("amount", [1.5, True, None])
def test_an_amount_that_is_not_exact_is_a_type_error(amount: object) -> None:
    with pytest.raises(TypeError, match="must be a str, an int or a Decimal"):
        money(amount, "EUR")  # type: ignore[arg-type]


def test_an_unknown_currency_cannot_be_shown() -> None:
    with pytest.raises(ValueError, match="not in ISO 4217"):
        format_money(Money(currency_code="ABC", minor_units=1))


@given(st.integers(0, MAX_MINOR_UNITS), st.sampled_from(["EUR", "JPY", "KWD", "CLF"]))
def test_text_and_decimals_lose_nothing(minor_units: int, currency: str) -> None:
    amount = Money(currency_code=currency, minor_units=minor_units)
    assert money(format_money(amount).split()[0], currency) == amount
    assert money(to_decimal(amount), currency) == amount
