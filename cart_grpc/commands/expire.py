"""Ending carts that were left alone."""

from dataclasses import dataclass

from cart_grpc.carts.calls import NewId
from cart_grpc.carts.rules import expire_cart
from cart_grpc.commands.unit_of_work import ReadSet, UnitOfWork
from cart_grpc.names import CartKey


@dataclass(frozen=True, slots=True)
class Expire:
    """End one cart if it was left alone for longer than its ttl. Answered with whether it was."""

    cart: CartKey

    def add_reads(self, reads: ReadSet) -> None:
        reads.users.add(self.cart.user)
        reads.carts.add(self.cart)
        reads.whole_carts.add(self.cart)

    def run(self, working: UnitOfWork, now: int, new_id: NewId) -> bool:
        change = expire_cart(working.contents(self.cart, None, ()), now)
        if change:
            working.apply(change)
        return change is not None
