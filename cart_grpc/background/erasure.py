"""Erases a user in small steps. Each is durable, and any process can make the next one."""

from cart_grpc.commands.direct import EraseRows
from cart_grpc.commands.erase import EraseCart, ForgetMerge
from cart_grpc.names import UserKey
from cart_grpc.store.store import Store

ROWS_PER_STEP = 100


async def erase(store: Store, user: UserKey) -> bool:
    """Make the next step of an erasure that was begun. Return whether it did anything: not if it waits or is over.

    It waits for running checkouts, then for the Reservation API to confirm every release. Raises DatabaseUnavailable.
    """
    seen = await store.erasures.find(user)
    if seen.begin_time is None or seen.blocking:
        return False
    if seen.open_carts:
        return any([await store.intervene(EraseCart(cart)) for cart in seen.open_carts])
    if seen.unreleased_count:
        return False
    if seen.merged:
        return any([await store.intervene(ForgetMerge(cart, user)) for cart in seen.merged])
    return await store.erase_rows(EraseRows(user, ROWS_PER_STEP)) > 0
