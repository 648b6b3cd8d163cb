"""A cart at one moment, as values."""

from collections.abc import Sequence
from dataclasses import dataclass

from cart_grpc.carts.model import Cart, Line
from cart_grpc.store.read import cart_json
from cart_grpc.store.read.cart_json import CartJson, parse_head, parse_line


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A cart at one moment. `lines` are in the order in which they were added; `now` is the database's time.

    `releasing` is as in `cart_json.Head`.
    """

    cart: Cart
    lines: Sequence[Line]
    releasing: Sequence[str]
    now: int

    @property
    def reconciling(self) -> bool:
        """Whether the Reservation API has not confirmed everything that the cart's callers want."""
        return bool(self.releasing) or any(line.reservation.reconciling for line in self.lines)

    def is_releasing(self, item_id: str | None) -> bool:
        """Whether a release of the item is not confirmed, or, for None, a release of any item.

        In a cart with MAX_RELEASING releases or more, every item counts as being released.
        """
        if item_id is None or len(self.releasing) >= cart_json.MAX_RELEASING:
            return bool(self.releasing)
        return item_id in self.releasing


def parse_snapshot(found: CartJson) -> Snapshot:
    """Parse a cart's JSON."""
    cart, releasing = parse_head(found.head)
    return Snapshot(cart, [parse_line(line).line for line in found.lines], releasing, found.now)
