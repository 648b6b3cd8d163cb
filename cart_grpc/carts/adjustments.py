"""The differences that a merge of two carts makes to the lines of the source."""

from enum import IntEnum
from typing import NamedTuple

from cart_grpc.carts.model import Line, Money


class AdjustmentType(IntEnum):
    """The kind of an Adjustment. `cartgrpc.v1` uses the same numbers."""

    QUANTITY_CLAMPED = 1
    DROPPED = 2
    PRICE_DROPPED = 3
    PRICE_REPLACED = 4


class Adjustment(NamedTuple):
    """A difference that a merge made to a line of the source.

    `line` is the line as it was in the source, and `currency_code` the source's currency. `item_name` is the item in
    the target, "" if it was dropped, and `quantity` its quantity there. `quota` is the limit that left no room for the
    line. `lost_price` is the price that neither cart has any more.
    """

    type: AdjustmentType
    line: Line
    currency_code: str
    item_name: str
    quantity: int
    quota: str = ""
    lost_price: Money | None = None
