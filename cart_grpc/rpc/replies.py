"""GetCart's reply, put together from the encodings of its parts, those of late remembered.

Making 20 items into messages takes as long as all the rest of a call. What an item's encoding is made from is its
line of text, so that is what it is remembered by: no two texts share one, and none is ever out of date.
"""

from functools import lru_cache
from sys import getsizeof

from cart.v1 import cart_pb2
from google.protobuf.wrappers_pb2 import BytesValue

from cart_grpc.rpc.messages import cart_message, line_message
from cart_grpc.store.cart_text import CartText, read_head, read_line

# A line without labels takes about 1 KiB with its encoding, so 30 MiB in all; 100 MiB if all are of the longest.
_REMEMBERED_LINES = 32_768
_REMEMBERED_HEADS = 4_096
_LONGEST_BYTES = 1_500


def get_cart(found: CartText) -> bytes:
    """The encoded GetCartResponse with the cart that was `found`."""
    # Encodings of one type, one after the other, are the encoding of the messages merged.
    cart = b"".join((_head(found.head), *map(_line, found.lines)))
    # On the wire, a message in a field cannot be told from its bytes in such a field.
    return BytesValue(value=cart).SerializeToString()


def _head(text: str) -> bytes:
    return _remembered_head(text) if getsizeof(text) <= _LONGEST_BYTES else _encode_head(text)


def _line(text: str) -> bytes:
    return _remembered_line(text) if getsizeof(text) <= _LONGEST_BYTES else _encode_line(text)


def _encode_head(text: str) -> bytes:
    cart, reconciling = read_head(text)
    return cart_message(cart, (), 0, reconciling=reconciling).SerializeToString(deterministic=True)


def _encode_line(text: str) -> bytes:
    """A cart with nothing but the item, and with `reconciling` where the item is."""
    line, currency_code, since = read_line(text)
    item = line_message(line, currency_code, since)
    return cart_pb2.Cart(items=[item], reconciling=item.reconciling).SerializeToString(deterministic=True)


_remembered_head = lru_cache(_REMEMBERED_HEADS)(_encode_head)
_remembered_line = lru_cache(_REMEMBERED_LINES)(_encode_line)
