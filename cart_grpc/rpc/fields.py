"""Checks of single request fields. Violations are collected, so that a caller sees all of them at once."""

import re
from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from typing import Any, TypeVar

from cartgrpc.v1 import cart_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from cart_grpc import names
from cart_grpc.carts.model import Money
from cart_grpc.carts.refusals import FieldViolation, InvalidArgument
from cart_grpc.names import CartKey, CheckoutKey, UserKey

E = TypeVar("E", bound=IntEnum)
MAX_SKU = 128
MAX_OPTIONS = 20
MAX_LABELS = 16
MAX_KEY = 63
MAX_VALUE = 256
MAX_MINOR_UNITS = 1_000_000_000_000
MIN_TTL_SECONDS = 60
MAX_TTL_SECONDS = 365 * 24 * 3600
MAX_WAIT_SECONDS = 60
MAX_VIOLATION_BYTES = 1_000
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_CURRENCY = re.compile(r"[A-Z]{3}")
_ETAG = re.compile(r'"[0-9a-f]{8}-[0-9a-f]{1,16}"')


class Fields:
    """The violations found in one request so far.

    Each method checks one field and returns its value, or a placeholder if the field is invalid: call `check` before
    you use any of them.
    """

    def __init__(self) -> None:
        self._violations: list[FieldViolation] = []
        self._size = 0

    def fault(self, field: str, reason: str, description: str) -> None:
        """Record that `field` is invalid: `reason` in UPPER_SNAKE_CASE, `description` with the rule that it breaks.

        Violations beyond MAX_VIOLATION_BYTES are dropped: they are sent in trailers, whose size clients limit.
        """
        if self._size < MAX_VIOLATION_BYTES:
            self._violations.append(FieldViolation(field, reason, description))
            self._size += len(f"{field}{description}".encode())

    def check(self) -> None:
        """Raise InvalidArgument if there are violations."""
        if self._violations:
            raise InvalidArgument(self._violations)

    def user(self, field: str, name: str) -> UserKey:
        key = names.find_user(name)
        if key is None:
            self.fault(field, "INVALID_NAME", f"must be users/{{user}}; {{user}} must be {names.ID_HINT}")
        return key or UserKey(0, "")

    def cart(self, field: str, name: str) -> CartKey:
        key = names.find_cart(name)
        if key is None:
            self.fault(field, "INVALID_NAME", f"must be users/{{user}}/carts/{{cart}}; each id must be {names.ID_HINT}")
        return key or CartKey(0, "", "")

    def item(self, field: str, name: str) -> tuple[CartKey, str]:
        found = names.find_item(name)
        if found is None:
            self.fault(
                field,
                "INVALID_NAME",
                "must be users/{user}/carts/{cart}/items/{item}: copy the name of an item from a reply",
            )
        return found or (CartKey(0, "", ""), "")

    def checkout(self, field: str, name: str) -> CheckoutKey:
        key = names.find_checkout(name)
        if key is None:
            self.fault(
                field,
                "INVALID_NAME",
                "must be users/{user}/checkouts/{checkout}: copy the name of a checkout from a reply",
            )
        return key or CheckoutKey(0, "", "")

    def reservation(self, field: str, name: str) -> str:
        reservation_id = names.find_reservation(name)
        if reservation_id is None:
            self.fault(
                field, "INVALID_NAME", "must be reservations/{reservation}; {reservation} must be a UUID in lower case"
            )
        return reservation_id or ""

    def id(self, field: str, text: str) -> str:
        if not names.is_id(text):
            self.fault(field, "INVALID_ID", f"must be {names.ID_HINT}")
        return text

    def text(self, field: str, text: str, most: int, least: int = 0) -> str:
        if not least <= len(text) <= most:
            self.fault(field, "INVALID_LENGTH", f"must have {least} to {most} characters, not {len(text)}")
        elif _CONTROL.search(text):
            self.fault(field, "CONTROL_CHARACTER", "must not contain control characters")
        return text

    def texts(self, field: str, entries: Mapping[str, str], most: int) -> Mapping[str, str]:
        if not entries:
            return {}
        if len(entries) > most:
            self.fault(field, "TOO_MANY", f"must have at most {most} entries, not {len(entries)}")
            return {}
        for key, value in entries.items():
            shown = key if 0 < len(key) <= MAX_KEY and not _CONTROL.search(key) else "?"
            if not 1 <= len(key) <= MAX_KEY:
                self.fault(
                    field, "INVALID_LENGTH", f"has a key of {len(key)} characters; keys must have 1 to {MAX_KEY}"
                )
            elif _CONTROL.search(key):
                self.fault(field, "CONTROL_CHARACTER", "has a key with control characters, which are not allowed")
            self.text(f"{field}[{shown}]", value, MAX_VALUE)
        return dict(entries)

    def quantity(self, field: str, quantity: int, most: int) -> int:
        if not 1 <= quantity <= most:
            self.fault(field, "OUT_OF_RANGE", f"must be 1 to {most}, not {quantity}")
        return quantity

    def states(self, field: str, numbers: Iterable[int], kind: type[E]) -> frozenset[E]:
        """The values of an enum with these numbers."""
        known = {int(state) for state in kind}
        if not known.issuperset(numbers):
            self.fault(field, "INVALID_STATE", f"must be from {', '.join(kind.__members__)}")
        return frozenset(kind(number) for number in numbers if number in known)

    def non_negative(self, field: str, number: int) -> int:
        if number < 0:
            self.fault(field, "OUT_OF_RANGE", f"must be 0 or more, not {number}")
        return number

    def money(self, field: str, money: cart_pb2.Money, most: int = MAX_MINOR_UNITS) -> Money:
        self.currency(f"{field}.currency_code", money.currency_code)
        if not 0 <= money.minor_units <= most:
            self.fault(f"{field}.minor_units", "OUT_OF_RANGE", f"must be 0 to {most}, not {money.minor_units}")
        return Money(money.currency_code, money.minor_units)

    def currency(self, field: str, code: str) -> str:
        if not _CURRENCY.fullmatch(code):
            self.fault(field, "INVALID_CURRENCY", "must be an ISO 4217 code of three capital letters, such as EUR")
        return code

    def duration(self, field: str, duration: Duration, least: int, most: int) -> int:
        """Return the duration in microseconds. `least` and `most` are in seconds, inclusive."""
        nanos = duration.seconds * 1_000_000_000 + duration.nanos
        if abs(duration.nanos) > 999_999_999 or not least * 1_000_000_000 <= nanos <= most * 1_000_000_000:
            self.fault(field, "OUT_OF_RANGE", f"must be {least} to {most} seconds, not {nanos / 1e9:g}")
            return 0
        return nanos // 1000

    def etag(self, field: str, etag: str) -> str:
        if etag and not _ETAG.fullmatch(etag):
            self.fault(
                field,
                "INVALID_ETAG",
                'must be an etag exactly as a reply contains it, including the quotes, such as "5bd0c1ae-1f"',
            )
        return etag

    def paths(self, field: str, request: Message, resource: Message, settable: Sequence[str]) -> frozenset[str]:
        """Return the fields to update: those in the mask; all for `*`; without a mask, the populated ones."""
        if not request.HasField(field):
            return frozenset(path for path in settable if _is_populated(resource, path))
        paths = list(getattr(request, field).paths)
        if paths == ["*"]:
            return frozenset(settable)
        for path in paths:
            if path not in settable:
                shown = path[:64] if not _CONTROL.search(path) else "?"
                self.fault(
                    f"{field}.paths",
                    "INVALID_PATH",
                    f"must not contain {shown!r}; the allowed paths are {', '.join(settable)}",
                )
        return frozenset(paths)


def _is_populated(resource: Message, path: str) -> bool:
    value: Any = getattr(resource, path)
    field = resource.DESCRIPTOR.fields_by_name[path]
    return resource.HasField(path) if field.has_presence else bool(value)
