"""How many bytes a cart, an item, a reply or a reservation counts.

A cart counts the most bytes that its encoding can have: the texts that callers store, and a fixed room for all other
fields. So a cart within its limit can be read at any time, whatever the Reservation API answers meanwhile.

Carts and users keep running totals in the database. A release that counts differently must migrate them.
"""

from collections.abc import Mapping
from typing import Final

from cart_grpc.carts.model import Item

# The fields of `cartgrpc.v1.Cart` with a fixed length take up to 190 bytes, and the name in `merged_into` up to 272.
CART_ROOM: Final = 512
# The fields of `cartgrpc.v1.Item` with a fixed length take up to 390 bytes. They include its reservation: a reason of
# up to 63 characters, and a message that repeats it in a sentence, with the sku.
ITEM_ROOM: Final = 512
# Tags and lengths of one entry of a map.
_ENTRY_ROOM: Final = 9
# The key and the fingerprint of a stored reply.
REPLY_ROOM: Final = 256
# A row of `checkouts`, with its order_reference.
CHECKOUT_ROOM: Final = 768
# A row of `reservations`. It stays for a while after its item is gone, and then it is all that the item has left.
RESERVATION_BYTES: Final = 512


def item_bytes(item: Item) -> int:
    """The most bytes that an item can have in its encoded cart."""
    # The message of the reservation repeats the sku.
    texts = len(item.name) + 2 * len(item.sku.encode())
    return ITEM_ROOM + texts + entries_bytes(item.options) + entries_bytes(item.labels)


def entries_bytes(entries: Mapping[str, str]) -> int:
    """The most bytes that labels or options can have in an encoded message."""
    return len(entries) * _ENTRY_ROOM + text_bytes(entries)


def text_bytes(entries: Mapping[str, str]) -> int:
    """The bytes of the texts in labels or options."""
    size = 0
    for key, value in entries.items():
        size += len(key.encode()) + len(value.encode())
    return size
