"""One statement that finds which of many carts have changed. Watches rely on it when a hint is lost."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import BigInteger, Select, Text, cast, func, or_, select

from cart_grpc.names import CartKey, parse_cart_key
from cart_grpc.store.dialects import Dialect
from cart_grpc.store.schema import carts
from cart_grpc.store.statements import CART

# The event loop encodes the parameters of a statement, so a larger one would delay calls.
MAX_CHECKED: Final = 1_000
_KEY_COLUMNS: Final = {**{name: carts.c[name].type for name in CART}, "uid": Text(), "revision": BigInteger()}
# No key contains it.
_SEPARATOR = " "


class Known(NamedTuple):
    """The version of a cart that a watcher knows: "" and 0 if there was no cart."""

    uid: str
    revision: int


NO_CART: Final = Known("", 0)


def to_known(version: str) -> Known:
    """The version of a `CartJson`."""
    uid, _, revision = version.rpartition(":")
    return Known(uid, int(revision))


def bind_known(dialect: Dialect, known: Sequence[tuple[CartKey, Known]]) -> Mapping[str, Any]:
    """The parameters of `select_changed`."""
    return dialect.bind_keys(tuple(_KEY_COLUMNS), [(*key, *version) for key, version in known])


def parse_changed(text: str | None) -> list[CartKey]:
    """The keys in the text that `select_changed` returns."""
    return [parse_cart_key(each) for each in text.split(_SEPARATOR)] if text else []


def select_changed(dialect: Dialect) -> Select[str]:
    """The keys whose cart has another version than the known one, as one text. Takes the parameters of `bind_known`."""
    keys = dialect.numbered_keys(_KEY_COLUMNS)
    cart, on = dialect.join_by_index(carts, CART, keys)
    changed = or_(func.coalesce(cart.c.uid, "") != keys.c.uid, func.coalesce(cart.c.revision, 0) != keys.c.revision)
    key = cast(keys.c.slice, Text) + "/" + keys.c.user_id + "/" + keys.c.cart_id
    each = select(key.label("key")).select_from(keys.outerjoin(cart, on)).where(changed).subquery("changed")
    return select(dialect.string_agg(each.c.key, _SEPARATOR))
