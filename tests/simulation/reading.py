"""What is remembered of a cart is held against what the database says, each time that it is said to be unchanged."""

from collections.abc import Sequence

from cartgrpc.v1 import cart_service_pb2

from cart_grpc.names import CartKey
from cart_grpc.rpc.replies import get_cart
from cart_grpc.store.read.cart_json import UNCHANGED, CacheValidator, CartJson, Found, bind_carts, read_carts
from cart_grpc.store.read.carts import Reads
from tests.simulation.database import SimulatedEngine

Wanted = tuple[CartKey, CacheValidator | None]


class CheckedReads:
    """Stands around the group read of `reads`, and raises AssertionError in whoever is told what is not so."""

    def __init__(self, reads: Reads, engine: SimulatedEngine) -> None:
        self._reads = reads._carts
        self._fetch = reads._carts._fetch
        self._engine = engine
        self._replies: dict[Wanted, bytes] = {}

    def install(self) -> None:
        self._reads._fetch = self._checked  # type: ignore[method-assign]

    async def _checked(self, wanted: Sequence[Wanted]) -> dict[Wanted, Found]:
        found = await self._fetch(wanted)
        for (key, stamp), text in found.items():
            if isinstance(text, CartJson) and text.stamp:
                current = get_cart(text)
                self._compare(self._replies.setdefault((key, text.stamp), current), current)
            if text is UNCHANGED:
                # Nothing comes between: what was read above was read in this instant.
                self._compare(self._replies[key, stamp], self._read(key))
        return found

    def _read(self, key: CartKey) -> bytes:
        parameters = bind_carts(self._engine.dialect, [(key, None)])
        (row,) = self._reads._statement.fetch(self._engine.connection, parameters)
        (text,) = read_carts(row)
        assert isinstance(text, CartJson), f"{key} is unchanged, and not there"
        return get_cart(text)

    def _compare(self, remembered: bytes, current: bytes) -> None:
        first, second = (cart_service_pb2.GetCartResponse.FromString(reply).cart for reply in (remembered, current))
        if self._engine.is_set_back:
            # What falls due is claimed, which raises no revision; due it was, by a clock that was ahead.
            for cart in (first, second):
                for item in cart.items:
                    for field in ("attempt_count", "next_attempt_time", "message", "expire_time"):
                        item.reservation.ClearField(field)
        assert first == second, f"what is said to be unchanged is not: {first} and {second}"
