"""The command that ends a cart whose ttl has passed."""

from dataclasses import dataclass

from cart_grpc.carts.calls import CartRead, NewId
from cart_grpc.carts.rules import expire_cart
from cart_grpc.commands.unit_of_work import ReadSet, UnitOfWork
from cart_grpc.names import CartKey


@dataclass(frozen=True, slots=True)
class Expire:
    """End one cart if its ttl has passed since its last change. The answer is whether it was ended."""

    cart: CartKey

    def add_reads(self, reads: ReadSet) -> None:
        reads.add_cart(CartRead(self.cart))

    def run(self, unit: UnitOfWork, now: int, new_id: NewId) -> bool:
        change = expire_cart(unit.get_loaded_cart([CartRead(self.cart)]), now)
        if change:
            unit.apply(change)
        return change is not None
