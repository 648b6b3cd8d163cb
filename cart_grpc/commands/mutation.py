"""A caller's change of one cart."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cart_grpc.carts.calls import Change, LoadedCart, NewId
from cart_grpc.carts.refusals import RequestIdReused
from cart_grpc.commands.unit_of_work import ReadSet, Reply, UnitOfWork
from cart_grpc.names import CartKey


@dataclass(frozen=True, slots=True)
class Mutation:
    """A caller's change of one cart.

    `decide` is the rule; `encode` makes the reply's bytes, which are stored with the effect where there is a
    request_id, and given again to whoever repeats it. `item_ids` are the lines that the rule sees, None for all; `skus`
    those of lines it may make.
    """

    cart: CartKey
    decide: Callable[[LoadedCart, int, NewId], Change]
    encode: Callable[[Change, int], bytes]
    item_ids: Sequence[str] | None
    skus: Sequence[str] = ()
    request_id: str = ""
    fingerprint: bytes = b""

    def add_reads(self, reads: ReadSet) -> None:
        reads.users.add(self.cart.user)
        reads.carts.add(self.cart)
        if self.request_id:
            reads.replies.add((self.cart.user, self.request_id))
        if self.item_ids is None:
            reads.whole_carts.add(self.cart)
        else:
            reads.items.update((self.cart, item_id) for item_id in self.item_ids)
        reads.skus.update((self.cart, sku) for sku in self.skus)

    def run(self, working: UnitOfWork, now: int, new_id: NewId) -> bytes:
        """Returns the reply's bytes. Raises CallRefused."""
        reply_key = (self.cart.user, self.request_id)
        stored = working.replies.get(reply_key) if self.request_id else None
        if stored:
            if stored.fingerprint != self.fingerprint:
                raise RequestIdReused(self.request_id)
            return stored.reply
        change = self.decide(working.contents(self.cart, self.item_ids, self.skus), now, new_id)
        reply = self.encode(change, now)
        working.apply(change)
        if self.request_id:
            working.put_reply(reply_key, Reply(self.fingerprint, reply))
        return reply
