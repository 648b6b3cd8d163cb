"""What can be written: a caller's mutation of a cart, and the reconciler's claims and records.

A command says what it needs to have read, and is then a function of it. It may share its transaction with others, and
may be run again from the start: it touches nothing but the working set it is given.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from cart_grpc.carts.attempts import count_duplicates, follow_up, open_attempt
from cart_grpc.carts.changes import Change, Contents, NewId
from cart_grpc.carts.model import progress
from cart_grpc.carts.names import CartKey
from cart_grpc.carts.protocol import find_alarm, record, unblock
from cart_grpc.carts.refusals import RequestIdReused
from cart_grpc.carts.reservation import Answer, Disposition, Reservation, Silence
from cart_grpc.carts.rules import expire_cart
from cart_grpc.store.statements import Lane
from cart_grpc.store.working import Needs, Reply, Working

R_co = TypeVar("R_co", covariant=True)


class Command(Protocol[R_co]):
    """A write that is folded into a batch, and gets its own answer or refusal."""

    def add_needs(self, needs: Needs) -> None:
        """Add what this command must see to `needs`."""
        ...

    def run(self, working: Working, now: int, new_id: NewId) -> R_co:
        """Change `working` and return the answer, or raise and leave it as it was."""
        ...


@dataclass(frozen=True, slots=True)
class Mutation:
    """A caller's change of one cart.

    `decide` is the rule; `encode` makes the reply's bytes, which are stored with the effect where there is a
    request_id, and given again to whoever repeats it. `item_ids` are the lines that the rule sees, None for all; `skus`
    those of lines it may make.
    """

    cart: CartKey
    decide: Callable[[Contents, int, NewId], Change]
    encode: Callable[[Change, int], bytes]
    item_ids: Sequence[str] | None
    skus: Sequence[str] = ()
    request_id: str = ""
    fingerprint: bytes = b""

    def add_needs(self, needs: Needs) -> None:
        needs.users.add(self.cart.user)
        needs.carts.add(self.cart)
        if self.request_id:
            needs.replies.add((self.cart.user, self.request_id))
        if self.item_ids is None:
            needs.whole_carts.add(self.cart)
        else:
            needs.items.update((self.cart, item_id) for item_id in self.item_ids)
        needs.skus.update((self.cart, sku) for sku in self.skus)

    def run(self, working: Working, now: int, new_id: NewId) -> bytes:
        """Returns the reply's bytes. Raises Refused."""
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


@dataclass(frozen=True, slots=True)
class Recorded:
    """What became of a record: the row as it is now, and what an operator must hear of, if anything.

    `duplicates` is how many reservations too many were found and undone.
    """

    reservation: Reservation
    alarm: str | None
    duplicates: int = 0


@dataclass(frozen=True, slots=True)
class Record:
    """The outcome of one call to the Reservation API, for the claim it was made under.

    `retry_delay` is how long, in microseconds, to leave it alone where there was no answer. `spent` is False where
    the API is known to be down, or was not even called: the attempt says nothing about this reservation, and is not
    counted. `spread`, 0 to 1 and random, keeps what was held together from being renewed together. `opened` is what
    `OpenAttempt` answered under this claim, if it was asked; `grace`, in microseconds, spaces the watch over what was
    attempted.
    """

    claimed: Reservation
    outcome: Answer | Silence
    retry_delay: int
    spent: bool = True
    spread: float = 0.5
    opened: int | None = None
    grace: int = 0

    def add_needs(self, needs: Needs) -> None:
        claimed = self.claimed
        needs.users.add(claimed.cart.user)
        needs.carts.add(claimed.cart)
        needs.items.add((claimed.cart, claimed.item_id))
        needs.reservations.add((claimed.cart, claimed.reservation_id))
        if claimed.disposition is Disposition.RELEASE:
            needs.skus.add((claimed.cart, claimed.sku))

    def run(self, working: Working, now: int, new_id: NewId) -> Recorded:
        before = working.reservations.get(self.claimed.reservation_id)
        if before is None:
            # Over for so long that it was purged: a late answer has nothing to change.
            return Recorded(self.claimed, None)
        epoch, sent = self.claimed.lease_epoch, self.claimed.revision
        after = record(before, epoch, sent, self.outcome, now, now + self.retry_delay, self.spread)
        after = follow_up(after, self.outcome, self.opened, now, self.grace)
        if not self.spent and after.lease_epoch == epoch and after.attempt:
            after = after._replace(attempt=after.attempt - 1)
        put_after(working, before, after, now)
        duplicates = count_duplicates(before, self.outcome)
        alarm = f"{duplicates} reservations too many were found and undone" if duplicates else None
        return Recorded(after, alarm or find_alarm(before, self.outcome), duplicates)


@dataclass(frozen=True, slots=True)
class OpenAttempt:
    """Note, before anything is sent, that an attempt is open for `window` microseconds from now.

    Answered with the time at which that ends, or None where nothing may be sent.
    """

    claimed: Reservation
    window: int

    def add_needs(self, needs: Needs) -> None:
        claimed = self.claimed
        needs.users.add(claimed.cart.user)
        needs.carts.add(claimed.cart)
        needs.items.add((claimed.cart, claimed.item_id))
        needs.reservations.add((claimed.cart, claimed.reservation_id))

    def run(self, working: Working, now: int, new_id: NewId) -> int | None:
        before = working.reservations.get(self.claimed.reservation_id)
        after = open_attempt(before, self.claimed, self.window, now) if before else None
        if before is None or after is None:
            return None
        put_after(working, before, after, now)
        return after.uncertain_until


def put_after(working: Working, before: Reservation, after: Reservation, now: int) -> None:
    """Put `after` in the place of `before`: callers see that the cart changed, and what waited for a release goes on.

    `working` has the cart, the item and, where `after` is a release, the sku. What nobody has claimed changes with its
    cart's revision only, whatever of it does: `cart_text` counts on that.
    """
    if after == before:
        return
    # At 0, too: what has run out has not, once the database's clock is set back.
    shows = before.lease_until is None or any(
        _visible(working, before, time) != _visible(working, after, time) for time in (now, 0)
    )
    working.put_reservation(after)
    if after.settled and not before.settled and after.disposition is Disposition.RELEASE:
        shows = _unblock_waiting(working, after, now) or shows
    # An ended cart is purged once nothing of it is reconciling; an operator may set that going again.
    cart = working.carts.get(after.cart)
    if shows and cart:
        working.put_cart(cart._replace(revision=cart.revision + 1))


def _visible(working: Working, reservation: Reservation, now: int) -> object:
    """What a caller can see of a reservation: its item's progress, or whether it is still going once removed."""
    line = working.find_line(reservation.cart, reservation.item_id)
    if line is None or line.item.reservation_id != reservation.reservation_id:
        return reservation.reconciling
    seen = progress(line._replace(reservation=reservation), now)
    return (seen.state, seen.reserved_quantity, seen.reason, reservation.reconciling)


def _unblock_waiting(working: Working, released: Reservation, now: int) -> bool:
    """Make due what waited for this release, unless another old reservation of the sku is still going.

    Returns whether there was anything.
    """
    same_sku = working.of_sku(released.cart, released.sku)
    if any(other.releasing for other in same_sku):
        return False
    waiting = [other for other in same_sku if other.waiting]
    for other in waiting:
        working.put_reservation(unblock(other, now))
    return bool(waiting)


@dataclass(frozen=True, slots=True)
class Claim:
    """Claim up to `limit` due reservations of a lane for `lease` microseconds. Answered with their rows."""

    lane: Lane
    limit: int
    lease: int


@dataclass(frozen=True, slots=True)
class Extend:
    """Extend the claims that are still ours to `lease` microseconds from now."""

    claims: Sequence[Reservation]
    lease: int


@dataclass(frozen=True, slots=True)
class HandBack:
    """Give claims back, due at once for whoever comes first."""

    claims: Sequence[Reservation]


@dataclass(frozen=True, slots=True)
class Expire:
    """End one cart if it was left alone for longer than its ttl. Answered with whether it was."""

    cart: CartKey

    def add_needs(self, needs: Needs) -> None:
        needs.users.add(self.cart.user)
        needs.carts.add(self.cart)
        needs.whole_carts.add(self.cart)

    def run(self, working: Working, now: int, new_id: NewId) -> bool:
        change = expire_cart(working.contents(self.cart, None, ()), now)
        if change:
            working.apply(change)
        return change is not None


@dataclass(frozen=True, slots=True)
class Purge:
    """Delete up to `limit` rows of each kind that ended longer ago than its retention, in microseconds.

    Answered with how many were deleted.
    """

    replies: int
    reservations: int
    carts: int
    limit: int


@dataclass(frozen=True, slots=True)
class Pause:
    """Let nothing be claimed by anybody until Resume. Once paused, only the reason is replaced."""

    reason: str


@dataclass(frozen=True, slots=True)
class Resume:
    """Let claims be made again."""


@dataclass(frozen=True, slots=True)
class Ping:
    """Write what every batch writes, and nothing else: does the database take it?"""


WorkCommand = Claim | Extend | HandBack | Ping | Purge | Pause | Resume
