"""Resource names, such as `users/{user}/carts/{cart}/items/{item}`, and the keys that the store uses for them."""

import re
import zlib
from collections.abc import Mapping
from hashlib import sha256
from typing import NamedTuple

ID = re.compile(r"[A-Za-z0-9._~@|:+-]{1,128}")
ID_HINT = "1 to 128 characters of A-Z a-z 0-9 . _ ~ @ | : + -, and not '-', '.' or '..'"
SLICES = 256
_NOT_IDS = {"-", ".", ".."}
_CART = re.compile(f"users/({ID.pattern})/carts/({ID.pattern})")
_ITEM_ID = re.compile(r"[0-9a-f]{32}")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class UserKey(NamedTuple):
    """A user. `slice` is a hash of the user id and the first column of every key in the database: it never changes."""

    slice: int
    user_id: str

    @property
    def name(self) -> str:
        return f"users/{self.user_id}"


class CartKey(NamedTuple):
    """The key of a cart's name. After a cart has ended, another cart may take the name."""

    slice: int
    user_id: str
    cart_id: str

    @property
    def user(self) -> UserKey:
        return UserKey(self.slice, self.user_id)

    @property
    def name(self) -> str:
        return f"users/{self.user_id}/carts/{self.cart_id}"

    def item_name(self, item_id: str) -> str:
        return f"{self.name}/items/{item_id}"

    def checkout(self, checkout_id: str) -> "CheckoutKey":
        """The key of a checkout of the same user."""
        return CheckoutKey(self.slice, self.user_id, checkout_id)


class CheckoutKey(NamedTuple):
    """The key of a checkout."""

    slice: int
    user_id: str
    checkout_id: str

    @property
    def user(self) -> UserKey:
        return UserKey(self.slice, self.user_id)

    @property
    def name(self) -> str:
        return f"users/{self.user_id}/checkouts/{self.checkout_id}"


def user_key(user_id: str) -> UserKey:
    """The key of a user: CRC-32 of the id, folded into 256 slices."""
    return UserKey(zlib.crc32(user_id.encode()) % SLICES, user_id)


def cart_key(user: UserKey, cart_id: str) -> CartKey:
    return CartKey(user.slice, user.user_id, cart_id)


def parse_cart_key(text: str) -> CartKey:
    """The key in `{slice}/{user}/{cart}`. Raises ValueError."""
    number, user_id, cart_id = text.split("/")
    return CartKey(int(number), user_id, cart_id)


def is_id(text: str) -> bool:
    """Whether `text` is a valid id of a user, a cart or a request."""
    return ID.fullmatch(text) is not None and text not in _NOT_IDS


def find_user(name: str) -> UserKey | None:
    """The user in `users/{user}`, or None if `name` does not have that form."""
    match name.split("/"):
        case ["users", user_id] if is_id(user_id):
            return user_key(user_id)
    return None


def find_cart(name: str) -> CartKey | None:
    """The cart in `users/{user}/carts/{cart}`, or None if `name` does not have that form."""
    found = _CART.fullmatch(name)
    if found is None:
        return None
    user_id, cart_id = found.groups()
    return None if user_id in _NOT_IDS or cart_id in _NOT_IDS else cart_key(user_key(user_id), cart_id)


def find_checkout(name: str) -> CheckoutKey | None:
    """The checkout in `users/{user}/checkouts/{checkout}`, or None if `name` does not have that form."""
    match name.split("/"):
        case ["users", user_id, "checkouts", checkout_id] if is_id(user_id) and _UUID.fullmatch(checkout_id):
            return CheckoutKey(*user_key(user_id), checkout_id)
    return None


def find_item(name: str) -> tuple[CartKey, str] | None:
    """The cart and item id in `users/{user}/carts/{cart}/items/{item}`, or None if `name` does not have that form."""
    cart_name, separator, item_id = name.partition("/items/")
    cart = find_cart(cart_name)
    return (cart, item_id) if cart and separator and _ITEM_ID.fullmatch(item_id) else None


def find_reservation(name: str) -> str | None:
    """The reservation id in `reservations/{reservation}`, or None if `name` does not have that form."""
    collection, _, reservation_id = name.partition("/")
    return reservation_id if collection == "reservations" and _UUID.fullmatch(reservation_id) else None


def item_id_of(sku: str, options: Mapping[str, str]) -> str:
    """The item id of a sku with its options. Equal lines have equal ids, so the primary key prevents a second line.

    128 bits of SHA-256, as 32 hex digits, over the sku and the options in the order of their keys, each part preceded
    by its length.
    """
    parts = [sku, *(part for pair in sorted(options.items()) for part in pair)]
    return sha256("".join(f"{len(part)}:{part}" for part in parts).encode()).hexdigest()[:32]
