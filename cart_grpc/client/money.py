"""Exact amounts of money: text and Decimal to and from `cartgrpc.v1.Money`, which counts the smallest unit.

How many decimals a currency has is in ISO 4217, which the package `iso4217` contains: JPY has none, KWD has three.
"""

from decimal import Decimal, InvalidOperation
from typing import Final

from cartgrpc.v1.cart_pb2 import Money
from iso4217 import Currency

# As the server allows.
MAX_MINOR_UNITS: Final = 1_000_000_000_000


def money(amount: str | int | Decimal, currency_code: str) -> Money:
    """Return an amount: `money("12.34", "EUR")`, `money(1200, "JPY")`.

    Raises ValueError if it is no number, is negative or too large, or has more decimals than the currency has; also if
    the currency is not in ISO 4217 or has no decimals there, such as XAU. Raises TypeError for a float, which is not
    exact.
    """
    if isinstance(amount, bool) or not isinstance(amount, str | int | Decimal):
        raise TypeError(f"the amount {amount!r} must be a str, an int or a Decimal: a float is not exact")
    exponent = _exponent(currency_code)
    try:
        exact = Decimal(amount)
    except InvalidOperation:
        raise ValueError(f"the amount {amount!r} is not a number such as 12.34") from None
    if not exact.is_finite() or exact.is_signed() or exact.adjusted() > len(str(MAX_MINOR_UNITS)):
        raise ValueError(_bounds(amount, currency_code, exponent))
    minor_units, remainder = divmod(exact * 10**exponent, 1)
    if remainder:
        raise ValueError(f"the amount {amount} has too many decimals: {currency_code} has {exponent}")
    if minor_units > MAX_MINOR_UNITS:
        raise ValueError(_bounds(amount, currency_code, exponent))
    return Money(currency_code=currency_code, minor_units=int(minor_units))


def to_decimal(amount: Money) -> Decimal:
    """Return an amount in the currency's main unit, with the currency's decimals. Raises ValueError as `money` does."""
    return Decimal(amount.minor_units).scaleb(-_exponent(amount.currency_code))


def format_money(amount: Money) -> str:
    """Return an amount as text, such as `12.34 EUR`, `1200 JPY` or `1.250 KWD`. Raises ValueError as `money` does."""
    return f"{to_decimal(amount):f} {amount.currency_code}"


def show_money(amount: Money) -> str:
    """Return an amount as `format_money` does, or in smallest units if the currency is unknown. Raises nothing.

    The server does not check that a currency exists.
    """
    try:
        return format_money(amount)
    except ValueError:
        return f"{amount.minor_units} smallest units of {amount.currency_code}"


def _exponent(currency_code: str) -> int:
    try:
        exponent = Currency(currency_code).exponent
    except ValueError:
        raise ValueError(f"the currency {currency_code!r} is not in ISO 4217; an example is EUR") from None
    if exponent is None:
        raise ValueError(f"the currency {currency_code} has no smallest unit")
    return exponent


def _bounds(amount: object, currency_code: str, exponent: int) -> str:
    most = Decimal(MAX_MINOR_UNITS).scaleb(-exponent)
    return f"the amount {amount} must be 0 to {most:f} {currency_code}"
