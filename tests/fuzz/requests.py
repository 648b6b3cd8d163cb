"""Draws the bytes of requests from their descriptors: valid ones, with fields that are added, repeated or broken."""

import functools
import random
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from tests.reservation_api.fuzz import INTEGERS, TEXTS
from tests.rpc.right import CART, CHECKOUT, ITEM, RESERVATION, RIGHT, RIGHT_OF_OPERATORS, SKU, USER, right

METHODS: Final = (*RIGHT, *RIGHT_OF_OPERATORS)
MAX_DEPTH: Final = 5
VARINT, FIXED64, BYTES, START_GROUP, END_GROUP, FIXED32 = range(6)
WIRE_TYPES: Final = {
    FieldDescriptor.TYPE_STRING: BYTES,
    FieldDescriptor.TYPE_BYTES: BYTES,
    FieldDescriptor.TYPE_MESSAGE: BYTES,
    FieldDescriptor.TYPE_DOUBLE: FIXED64,
    FieldDescriptor.TYPE_FIXED64: FIXED64,
    FieldDescriptor.TYPE_FLOAT: FIXED32,
    FieldDescriptor.TYPE_FIXED32: FIXED32,
}
BOBS: Final = "users/bob/carts/default"
# Texts that may be valid in a field of this name, in some request.
PLAUSIBLE: Final[Mapping[str, Sequence[str]]] = {
    "name": (CART, ITEM, CHECKOUT, RESERVATION, USER, f"{USER}/carts/second", BOBS, f"{USER}2/carts/default"),
    "parent": (USER, CART, f"{USER}/carts/second", "users/bob", BOBS),
    "source": (CART, f"{USER}/carts/second", BOBS),
    "cart_id": ("second", "default", "-"),
    "sku": (SKU, "filters"),
    "etag": ('"0123abcd-1f"', '"00000000-1"'),
    "request_id": ("once", "twice"),
    "currency_code": ("EUR", "JPY", "XXX"),
    "paths": ("quantity", "unit_price", "labels", "currency_code", "ttl", "*"),
    "filter": ("state = ACTIVE", "state = OPEN OR state = FAILED", 'order_reference = "a\\"b"', " state  =  DELETED "),
    "order_by": ("name", "create_time desc", "update_time", "  name   asc "),
    "order_reference": ("order-17",),
    "user_prefix": ("a", "alice", "guest:"),
    "key": ("colour", "size"),
    "value": ("red", "XL"),
    "reason": ("their ticket 17",),
    "page_token": ("W10", "WyJhIiwgMSwgImEiXQ"),
}
HOSTILE: Final = (
    "-", "users/-/carts/-", "users//carts/", "users/alice/carts/default/items/", "\u2029", "\ufeff", "\ufffe", "\x85",
    "\U0001f6d2" * 130, "a" * 129, "٣", "ſ", "\U0010ffff", "%00", "{}", "[]", "'; DROP TABLE carts", '"' * 70,
    "\\" * 999, "state = " * 300, "x" * 70_000, " " * 60_000,
)  # fmt: skip
# Not UTF-8: a surrogate, a byte that never occurs, an overlong NUL, the beginning of a character, Latin-1.
INVALID_UTF8: Final = (b"\xed\xa0\x80", b"\xff", b"\xc0\x80", b"\xf0\x9f\x9b", b"\xe9t\xe9")


# Texts from replies, such as names, etags and page tokens, by the name of their field.
Seen = Mapping[str, Sequence[str]]
NOTHING: Final[Seen] = MappingProxyType({})


def draw_request(rng: random.Random, method: str, user: str = USER, seen: Seen = NOTHING) -> bytes:
    """The bytes of a request for a method."""
    kind = rng.randrange(16)
    if kind == 15:
        return rng.randbytes(rng.choice((0, 1, 4, 16, 64)))
    valid = encoded_right(method, user) if rng.randrange(8) < 7 else b""
    message = right(method).DESCRIPTOR
    if kind < 6:
        return valid + _known_text(rng, message, seen)
    drawn = valid + encode(rng, message, seen)
    return change_bytes(rng, drawn) if kind == 14 else drawn


@functools.cache
def encoded_right(method: str, user: str) -> bytes:
    """The bytes of the valid request for a method."""
    encoded: bytes = right(method, user).SerializeToString()
    return encoded


def encode(rng: random.Random, message: Descriptor, seen: Seen = NOTHING, depth: int = 0) -> bytes:
    """Some fields of a message. Appended to a message, they replace its numbers and texts and extend its lists."""
    parts = []
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 6, 0))):
        if not message.fields or rng.randrange(16) == 15:
            parts.append(_unknown_field(rng))
        else:
            parts.append(_field(rng, rng.choice(message.fields), seen, depth))
    return b"".join(parts)


def change_bytes(rng: random.Random, content: bytes) -> bytes:
    """Cut the content, drop some bytes of it, or insert or replace some."""
    if not content:
        return content
    at, some = rng.randrange(len(content)), rng.randbytes(rng.choice((1, 1, 4)))
    before, after = content[:at], content[at:]
    return rng.choice((before, before + after[1:], before + some + after, before + some + after[len(some) :]))


def draw_text(rng: random.Random, field: str, seen: Seen = NOTHING) -> bytes:
    """A text for a field of this name, in UTF-8 or not."""
    known = PLAUSIBLE.get(field, TEXTS)
    texts = rng.choice((known, known, _seen_in(field, seen) or TEXTS, TEXTS, HOSTILE))
    text = rng.choice(texts).encode(errors="surrogatepass")
    match rng.randrange(16):
        case 15:
            return text + rng.choice(INVALID_UTF8)
        case 14:
            return text + rng.choice(TEXTS).encode(errors="surrogatepass")
        case 13:
            return change_bytes(rng, text)
        case 12:
            return "".join(map(chr, (rng.randrange(0x110000) for _ in range(4)))).encode(errors="surrogatepass")
    return text


def _seen_in(field: str, seen: Seen) -> Sequence[str]:
    return seen.get(field) or seen.get(f"next_{field}") or ()


def _known_text(rng: random.Random, message: Descriptor, seen: Seen) -> bytes:
    """One field of the request with a text that replies had in such a field. Empty if there is none."""
    fields = [field for field in message.fields if _seen_in(field.name, seen)]
    if not fields:
        return b""
    field = rng.choice(fields)
    return _tag(field.number, BYTES) + _length_delimited(rng.choice(_seen_in(field.name, seen)).encode())


def _field(rng: random.Random, field: FieldDescriptor, seen: Seen, depth: int) -> bytes:
    if rng.randrange(32) == 31:
        return _unknown_field(rng, field.number)
    wire_type = WIRE_TYPES.get(field.type, VARINT)
    if wire_type == BYTES:
        if field.message_type is None:
            content = draw_text(rng, field.name, seen)
        else:
            content = encode(rng, field.message_type, seen, depth + 1) if depth < MAX_DEPTH else b""
        encoded = _tag(field.number, BYTES) + _length_delimited(content)
    elif wire_type == VARINT:
        numbers = [_varint(rng.choice(INTEGERS)) for _ in range(rng.choice((1, 1, 1, 2, 5)))]
        # A list of numbers may come as one field or as many; a single number may come twice, and the last one counts.
        packed = _tag(field.number, BYTES) + _length_delimited(b"".join(numbers))
        separate = b"".join(_tag(field.number, VARINT) + number for number in numbers)
        encoded = packed if field.is_repeated and rng.randrange(2) else separate
    else:
        encoded = _tag(field.number, wire_type) + rng.randbytes(8 if wire_type == FIXED64 else 4)
    often = field.is_repeated and rng.randrange(32) == 31 and len(encoded) < 1000
    return encoded * 201 if often else encoded


def _unknown_field(rng: random.Random, number: int = 0) -> bytes:
    """A field that no message has, or `number` with any wire type; well formed or not."""
    number = number or rng.choice((1000, 15, 16, 19_000, 2**29 - 1, 0, 2**29))
    match rng.randrange(8):
        case 0:
            return _tag(number, VARINT) + b"\x01"
        case 1:
            return _tag(number, BYTES) + _length_delimited(rng.randbytes(3))
        case 2:
            return _tag(number, FIXED32) + b"\0\0\xc0\x7f"
        case 3:
            levels = rng.choice((1, 20, 99, 101, 5000))
            return _tag(number, START_GROUP) * levels + _tag(number, END_GROUP) * levels
        case 4:
            # A number of eleven bytes, and one that ends too early.
            return _tag(number, VARINT) + rng.choice((b"\xff" * 10 + b"\1", b"\xff"))
        case 5:
            return _tag(number, BYTES) + _varint(rng.choice((5, 2**31, 2**63, 2**64 - 1)))
        case 6:
            content = b""
            for _ in range(rng.choice((1, 50, 150))):
                content = _tag(number, BYTES) + _length_delimited(content)
            return content
    return _tag(number, rng.randrange(8)) + rng.randbytes(2)


def _tag(number: int, wire_type: int) -> bytes:
    return _varint(number << 3 | wire_type)


def _length_delimited(content: bytes) -> bytes:
    return _varint(len(content)) + content


def _varint(number: int) -> bytes:
    """The number in base 128. A negative one is its two's complement of 64 bits."""
    number &= 2**64 - 1
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
