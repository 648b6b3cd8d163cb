"""The folded commands that erase a user, one small step each. `commands.direct.EraseRows` deletes the rows at the end.

Once a user is marked, nothing new begins: calls are refused, so every state that a step waits for stays once reached.
"""

from dataclasses import dataclass

from cart_grpc.carts.calls import CartRead, NewId
from cart_grpc.carts.rules import erase_cart
from cart_grpc.commands.unit_of_work import ReadSet, UnitOfWork
from cart_grpc.names import CartKey, UserKey


@dataclass(frozen=True, slots=True)
class EraseUser:
    """Mark a user as being erased. The answer: whether this began it."""

    user: UserKey

    def add_reads(self, reads: ReadSet) -> None:
        reads.users.add(self.user)

    def run(self, unit: UnitOfWork, now: int, new_id: NewId) -> bool:
        if self.user in unit.erase_times:
            return False
        unit.put_erase_time(self.user, now)
        return True


@dataclass(frozen=True, slots=True)
class EraseCart:
    """Delete an ACTIVE cart of a user who is being erased, and release its items. The answer: whether it did."""

    cart: CartKey

    def add_reads(self, reads: ReadSet) -> None:
        reads.add_cart(CartRead(self.cart))

    def run(self, unit: UnitOfWork, now: int, new_id: NewId) -> bool:
        if self.cart.user not in unit.erase_times:
            return False
        change = erase_cart(unit.get_loaded_cart([CartRead(self.cart)]), now)
        if change:
            unit.apply(change)
        return change is not None


@dataclass(frozen=True, slots=True)
class ForgetMerge:
    """Remove the name of the erased user's cart from another user's cart that was merged into it.

    The answer: whether it was there.
    """

    cart: CartKey
    erased: UserKey

    def add_reads(self, reads: ReadSet) -> None:
        reads.users.add(self.cart.user)
        reads.carts.add(self.cart)

    def run(self, unit: UnitOfWork, now: int, new_id: NewId) -> bool:
        cart = unit.carts.get(self.cart)
        if cart is None or not cart.merged_into.startswith(f"{self.erased.name}/"):
            return False
        unit.put_cart(cart._replace(merged_into="", revision=cart.revision + 1))
        return True
