"""Values on the command line of `cart-grpc cart`. argparse shows their errors."""

import argparse

from cartgrpc.v1 import cart_pb2

from cart_grpc.client.money import money


def pair(text: str) -> tuple[str, str]:
    """`KEY=VALUE`."""
    key, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text!r} must be KEY=VALUE")
    return key, value


def amount(text: str) -> cart_pb2.Money:
    """An amount with its currency at the end, such as `12.34EUR` or `12.34 EUR`."""
    try:
        return money(text[:-3].strip(), text[-3:])
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} must be an amount such as 12.34EUR: {error}") from None


def amount_or_none(text: str) -> cart_pb2.Money | None:
    """An amount as above, or `none`."""
    return None if text == "none" else amount(text)
