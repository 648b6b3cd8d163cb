"""Invariants between tables: items, reservations, carts and replies agree with each other."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping

from cart_grpc.carts.model import ENDED, Cart, Item, UserTotals
from cart_grpc.carts.sizes import CART_ROOM, CHECKOUT_ROOM, REPLY_ROOM, RESERVATION_BYTES, entries_bytes, item_bytes
from cart_grpc.protocol.reservation import FINAL, Disposition, Reservation
from tests.invariants.history import Dump, RowVersion
from tests.invariants.operations import Operation

RISING = ("revision", "intent_revision", "observed_revision", "lease_epoch")


def check_atomic(operations: Iterable[Operation], dump: Dump) -> list[str]:
    """Each operation wrote its item, reservation, reply and revision atomically: none exists without the others."""
    operations = list(operations)
    return [*check_tables(dump), *_check_revisions(operations, dump), *_check_replies(operations, dump)]


def check_tables(dump: Dump) -> list[str]:
    """Items, reservations, carts, checkouts and totals agree with each other."""
    rows = {row.reservation_id: row for row in dump.reservations}
    return [
        *_check_items(dump, rows),
        *_check_reservations(dump),
        *_check_totals(dump),
        *_check_checkouts(dump),
        *_check_users(dump),
    ]


def _check_items(dump: Dump, rows: Mapping[str, Reservation]) -> Iterator[str]:
    carts = {cart.key: cart for cart in dump.carts}
    for reservation_id, count in Counter(item.reservation_id for item in dump.items).items():
        if count > 1:
            yield f"{reservation_id} is the reservation of {count} items"
    for item in dump.items:
        cart, row = carts.get(item.cart), rows.get(item.reservation_id)
        if cart is None or cart.state in ENDED:
            yield f"{item.name} is in a cart that is not open: {cart}"
        if row is None:
            yield f"{item.name} has no reservation: {item.reservation_id} has no row"
        elif (row.cart, row.item_id, row.sku) != (item.cart, item.item_id, item.sku):
            yield f"{item.name} has the reservation of another item: {row}"
        else:
            yield from _check_intent(item, row)


def _check_intent(item: Item, row: Reservation) -> Iterator[str]:
    if row.seal_reason:
        # Sealed: the intent is the granted quantity, or RELEASE.
        if row.disposition is Disposition.HOLD and row.quantity > item.quantity:
            yield f"{item.name} has {item.quantity}, but its sealed hold keeps {row.quantity}: {row}"
    elif row.disposition is Disposition.RELEASE:
        yield f"{item.name} is in its cart, but its reservation has the intent RELEASE: {row}"
    elif row.quantity != item.quantity:
        yield f"{item.name} has {item.quantity}, but the intent is to reserve {row.quantity}: {row}"


def _check_reservations(dump: Dump) -> Iterator[str]:
    of_items = {item.reservation_id for items in (dump.items, *dump.sold_items.values()) for item in items}
    for row in dump.reservations:
        is_sold = row.checkout_id and row.finish_time is not None
        if row.reservation_id not in of_items and not is_sold and row.disposition is not Disposition.RELEASE:
            yield f"{row.reservation_id} belongs to no item, but its intent is not RELEASE: {row}"


def _check_totals(dump: Dump) -> Iterator[str]:
    items: defaultdict[object, list[Item]] = defaultdict(list)
    for item in dump.items:
        items[item.cart].append(item)
    for cart in dump.carts:
        of_cart = items[cart.key]
        found = (
            len(of_cart),
            sum(item.unit_price is not None for item in of_cart),
            sum(item.quantity for item in of_cart),
            sum(item.quantity * (item.unit_price or 0) for item in of_cart),
            CART_ROOM + len(cart.key.name) + entries_bytes(cart.labels) + sum(map(item_bytes, of_cart)),
        )
        totals = (cart.item_count, cart.priced_count, cart.total_quantity, cart.subtotal, cart.byte_size)
        if totals != found:
            yield f"{cart.key.name} has {cart}, but its items make (count, priced, quantity, subtotal, bytes) {found}"


def _check_checkouts(dump: Dump) -> Iterator[str]:
    for checkout in dump.checkouts:
        names = len(checkout.key.name) + len(checkout.cart.name)
        size = CHECKOUT_ROOM + names + sum(map(item_bytes, dump.sold_items.get(checkout.key, ())))
        if checkout.byte_size != size:
            yield f"{checkout.key.name} counts {checkout.byte_size} bytes, but its items make {size}"


def _check_users(dump: Dump) -> Iterator[str]:
    found: defaultdict[str, UserTotals] = defaultdict(UserTotals)
    for cart in dump.carts:
        is_open = cart.state not in ENDED
        more = UserTotals(cart.byte_size, is_open, cart.item_count * is_open, cart.total_quantity * is_open)
        found[cart.key.user.name] = found[cart.key.user.name].plus(more)
    for checkout in dump.checkouts:
        found[checkout.key.user.name] = found[checkout.key.user.name].plus(UserTotals(checkout.byte_size))
    for row in dump.reservations:
        found[row.cart.user.name] = found[row.cart.user.name].plus(UserTotals(RESERVATION_BYTES))
    for (user, _), reply in dump.replies.items():
        found[user] = found[user].plus(UserTotals(len(reply) + REPLY_ROOM))
    for user in found.keys() | dump.totals.keys():
        counted = dump.totals.get(user, UserTotals())
        if counted != found[user]:
            yield f"{user} counts {counted}, but its rows make {found[user]}"


def _check_revisions(operations: Iterable[Operation], dump: Dump) -> Iterator[str]:
    revisions: defaultdict[str, int] = defaultdict(int)
    etags: defaultdict[str, int] = defaultdict(int)
    for one in operations:
        revisions[one.cart] = max(revisions[one.cart], one.revision)
        etags[one.cart] = max(etags[one.cart], one.etag)
    for cart in dump.carts:
        name = cart.key.name
        if cart.revision < revisions[name]:
            yield f"{name} is at revision {cart.revision}, but {revisions[name]} was answered"
        if cart.etag_revision != etags[name]:
            yield f"{name} has the etag of {cart.etag_revision}, but {etags[name]} was the last in an answer"


def _check_replies(operations: Iterable[Operation], dump: Dump) -> Iterator[str]:
    asked = {(one.cart.partition("/carts/")[0], one.request_id) for one in operations if one.request_id}
    for user, request_id in dump.replies.keys() - asked:
        yield f"a reply to {request_id} of {user} is stored, but no operation has this request_id"


def check_settled(dump: Dump) -> list[str]:
    """At quiescence, only renewals of holds are left to do."""
    violations = []
    for row in dump.reservations:
        if not row.settled:
            violations.append(f"{row.reservation_id} has no decision on its latest revision: {row}")
        elif row.waiting:
            violations.append(f"{row.reservation_id} is still waiting: {row}")
        elif row.lease_expire_time is not None:
            violations.append(f"{row.reservation_id} is settled, but still claimed: {row}")
        elif row.due_time is not None and not row.granted_quantity:
            violations.append(f"{row.reservation_id} is due, but has nothing to renew: {row}")
    return violations


def check_rising(written: Iterable[RowVersion]) -> list[str]:
    """From one version of a row to the next: revisions never fall, and final states never change."""
    last: dict[str, Cart | Reservation] = {}
    violations: list[str] = []
    for after in (one.row for one in written):
        name = after.key.name if isinstance(after, Cart) else after.reservation_id
        before = last.get(name)
        last[name] = after
        if isinstance(after, Cart) and isinstance(before, Cart):
            violations.extend(_fallen(name, before, after, ("revision", "etag_revision")))
            if before.uid == after.uid and before.state in ENDED and after.state is not before.state:
                violations.append(f"{name} was {before.state.name} and became {after.state.name}")
        elif isinstance(after, Reservation) and isinstance(before, Reservation):
            violations.extend(_fallen(name, before, after, RISING))
            violations.extend(_unfinished(before, after))
    return violations


def _fallen(name: str, before: object, after: object, columns: Iterable[str]) -> Iterator[str]:
    for column in columns:
        old, new = getattr(before, column), getattr(after, column)
        if new < old:
            yield f"{column} of {name} fell from {old} to {new}"


def _unfinished(before: Reservation, after: Reservation) -> Iterator[str]:
    if before.state in FINAL and after.state is not before.state:
        yield f"{after.reservation_id} left the final state {before.state.name} for {after.state.name}"
    if before.disposition is Disposition.RELEASE and after.disposition is not Disposition.RELEASE:
        yield f"{after.reservation_id} changed its intent after RELEASE: {after}"
