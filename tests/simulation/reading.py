"""Each time the database answers "not modified", compare what the reader has with what the database has."""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from cartgrpc.v1 import cart_pb2, cart_service_pb2

from cart_grpc.names import CartKey
from cart_grpc.rpc.get_cart_cache import encode_get_cart
from cart_grpc.store.read.cache_validator import CacheValidator
from cart_grpc.store.read.cart_json import NOT_MODIFIED, CartJson, Found, bind_carts, parse_carts
from cart_grpc.store.read.grouped_reads import GroupedReads
from tests.simulation.database import SimulatedEngine
from tests.simulation.template import in_schema

Wanted = tuple[CartKey, CacheValidator | None]
# A claim and a renewal change these without raising the cart's revision.
UNVERSIONED: Final = ("attempt_count", "next_attempt_time", "message", "expire_time")


class _Read(NamedTuple):
    """A reply, how often times had moved when it was read, whether a step back was not yet applied, and the skew."""

    reply: bytes
    move_count: int
    is_in_step: bool
    skew: int


class CheckedReads:
    """Wraps the grouped reads of a shard, whose statements name `schema`.

    A wrong "not modified" raises AssertionError in the call that gets it. `knows_time`: whether this process has
    noticed the last step of the clock.
    """

    def __init__(
        self, reads: GroupedReads, engine: SimulatedEngine, schema: str | None, knows_time: Callable[[], bool]
    ) -> None:
        self._reads = reads
        self._fetch = reads._fetch
        self._engine = engine
        self._schema = schema
        self._knows_time = knows_time
        # What GetCart caches, by its validator, and the last cart that a watcher may have seen of a version.
        self._replies: dict[Wanted, _Read] = {}
        self._versions: dict[tuple[CartKey, str], bytes] = {}

    def install(self) -> None:
        self._reads._fetch = self._checked  # type: ignore[method-assign]

    async def _checked(self, wanted: Sequence[Wanted]) -> dict[Wanted, Found]:
        is_settled, skew = self._knows_time() and self._engine.is_step_applied, self._engine.skew
        found = await self._fetch(wanted)
        for (key, validator), cart in found.items():
            if isinstance(cart, CartJson):
                current = encode_get_cart(cart)
                self._versions[key, cart.version] = current
                if cart.validator:
                    engine = self._engine
                    read = _Read(current, engine.move_count, engine.is_step_open, engine.skew)
                    self._compare(self._replies.setdefault((key, cart.validator), read), current)
            if cart is NOT_MODIFIED and validator:
                # No transaction comes in between: the answer above was read in this instant.
                current = self._read(key)
                if known := self._replies.get((key, validator)):
                    was_set_back = known.skew - skew > 60_000_000
                    assert not (was_set_back and is_settled), f"{key}: this was read before the clock was set back"
                    self._compare(known, current)
                elif not self._engine.is_set_back:
                    # A watcher's validator. While the clock is set back, an expired hold counts as live again, and
                    # a watcher may see that a minute late.
                    self._compare_versioned(self._versions[key, validator.version], current)
        return found

    def _read(self, key: CartKey) -> bytes:
        parameters = bind_carts(self._engine.dialect, [(key, None)])
        (row,) = in_schema(
            self._engine.connection, self._schema, lambda one: self._reads._statement.fetch(one, parameters)
        )
        (cart,) = parse_carts(row)
        assert isinstance(cart, CartJson), f"{key} is not modified, but does not exist"
        return encode_get_cart(cart)

    def _compare(self, read: "_Read", current: bytes) -> None:
        known, has_moved = read.reply, self._engine.move_count > read.move_count
        if has_moved and read.is_in_step:
            # Rows that were written after a step back, and before times moved, seem to lapse too early.
            return
        if self._engine.is_set_back or has_moved:
            # A row that was due by a clock that was ahead may be claimed, and times move after a step back. Neither
            # raises a revision.
            self._compare_versioned(known, current)
        else:
            _assert_equal(_decode(known), _decode(current))

    def _compare_versioned(self, known: bytes, current: bytes) -> None:
        _assert_equal(_versioned(_decode(known)), _versioned(_decode(current)))


def _assert_equal(known: cart_pb2.Cart, current: cart_pb2.Cart) -> None:
    assert known == current, f"the cart was modified: {known} became {current}"


def _decode(reply: bytes) -> cart_pb2.Cart:
    return cart_service_pb2.GetCartResponse.FromString(reply).cart


def _versioned(cart: cart_pb2.Cart) -> cart_pb2.Cart:
    """The cart with only those fields whose every change raises its revision."""
    for item in cart.items:
        for field in UNVERSIONED:
            item.reservation.ClearField(field)
    return cart
