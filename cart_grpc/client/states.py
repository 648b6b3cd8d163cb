"""The states of a cart that a watch yields: each of them once."""

from typing import Final

from cartgrpc.v1 import cart_pb2

_ENDED: Final = (
    cart_pb2.Cart.STATE_EXPIRED,
    cart_pb2.Cart.STATE_DELETED,
    cart_pb2.Cart.STATE_CHECKED_OUT,
    cart_pb2.Cart.STATE_MERGED,
)


def has_ended(cart: cart_pb2.Cart) -> bool:
    """Whether the cart has ended: it will not change any more."""
    return cart.state in _ENDED


def is_news(cart: cart_pb2.Cart, seen: cart_pb2.Cart | None) -> bool:
    """Whether a watch that has yielded `seen` last must yield `cart`.

    After a reconnection, the first state is often the one that was seen last. Equal revisions do not suffice: some
    changes that only time causes, such as the end of a hold, do not raise the revision.
    """
    if seen is None or seen.uid != cart.uid:
        return True
    return cart.revision >= seen.revision and cart != seen
