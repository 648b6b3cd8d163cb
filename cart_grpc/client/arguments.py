"""Makes requests from the arguments of the client's methods. Checks only what the server cannot check better."""

import math
import re
import uuid
from datetime import timedelta
from enum import Enum
from typing import Any, Final, Literal, TypeAlias

from cartgrpc.v1 import cart_pb2
from google.protobuf.duration_pb2 import Duration

from cart_grpc import names

_ADDRESS: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+):[0-9]{1,5}")


class Unset(Enum):
    """The type of UNSET: a field that a call does not change."""

    UNSET = "UNSET"


UNSET: Final = Unset.UNSET
MaybeUnset: TypeAlias = Literal[Unset.UNSET]


def check_address(address: str) -> str:
    """Return the address. Raises ValueError."""
    if not _ADDRESS.fullmatch(address):
        raise ValueError(f"the address {address!r} must be HOST:PORT, such as 127.0.0.1:50051")
    return address


def check_timeout(seconds: float) -> float:
    """Return the seconds. Raises ValueError."""
    if not 0 < seconds < math.inf:
        raise ValueError(f"timeout is {seconds!r}; it must be a number of seconds above 0")
    return seconds


def check_wait(seconds: float) -> float:
    """Return the seconds. Raises ValueError. The server knows the upper bound."""
    if not 0 <= seconds < 1e9:
        raise ValueError(f"wait is {seconds!r}; it must be a number of seconds from 0 to 60")
    return seconds


def user_name(user: str) -> str:
    """Return `users/{user}`. Raises ValueError."""
    if not names.is_id(user):
        raise ValueError(f"the user {user!r} must be {names.ID_HINT}")
    return f"users/{user}"


def cart_key(user: str, cart: str) -> names.CartKey:
    """Return the key of a cart. Raises ValueError."""
    user_name(user)
    if not names.is_id(cart):
        raise ValueError(f"the cart {cart!r} must be {names.ID_HINT}")
    return names.cart_key(names.user_key(user), cart)


def cart_key_of(name: str) -> names.CartKey:
    """Return the key of the cart with the resource name `name`. Raises ValueError."""
    key = names.find_cart(name)
    if key is None:
        raise ValueError(f"the cart {name!r} must be users/USER/carts/CART, each id {names.ID_HINT}")
    return key


def item_name(cart: names.CartKey, item: str | cart_pb2.Item) -> str:
    """Return an item's resource name, from its message, its name or its id."""
    if isinstance(item, cart_pb2.Item):
        return item.name
    return item if "/" in item else cart.item_name(item)


def to_duration(seconds: float | timedelta) -> Duration:
    """Return a duration of the seconds. Raises ValueError."""
    if isinstance(seconds, timedelta):
        seconds = seconds.total_seconds()
    if not -1e9 < seconds < 1e9:
        raise ValueError(f"{seconds!r} must be a number of seconds")
    duration = Duration()
    duration.FromMicroseconds(round(seconds * 1_000_000))
    return duration


def complete(request: Any, *, wait: float, etag: str, request_id: str) -> str:
    """Set the fields that every mutation has. Return its request_id, a new one if none is given. Raises ValueError."""
    request.request_id = request_id or str(uuid.uuid4())
    request.etag = etag
    if check_wait(wait):
        request.max_wait.CopyFrom(to_duration(wait))
    sent: str = request.request_id
    return sent
