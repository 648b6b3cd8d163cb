"""The checks for weaker contracts, for replies that wait, and for expired carts."""

from dataclasses import replace

import pytest
from cartgrpc.v1 import cart_pb2, cart_service_pb2
from google.protobuf.duration_pb2 import Duration

from cart_grpc.carts.model import Cart, CartState
from cart_grpc.protocol.reservation import Disposition, Observed
from tests.carts.examples import KEY, NOW
from tests.invariants.callers import check_replays
from tests.invariants.effects import check_one_live
from tests.invariants.history import ApiEffect, Call, CallOutcome, Dump, RowVersion
from tests.invariants.operations import Operation, expiries

State = cart_pb2.Reservation.State
HELD = ApiEffect(10, "r-1", 1, Disposition.HOLD, "beans", 2, Observed.HELD, 2, 1_000)
SECOND = replace(HELD, time=20, reservation_id="r-2")
RELEASED = replace(HELD, time=30, revision=2, state=Observed.RELEASED, granted_quantity=0)
BEHIND = {"r-1": "item", "r-2": "item"}


@pytest.mark.parametrize(("since", "count"), [(0, 1), (20, 1), (25, 1), (30, 0), (40, 0)])
def test_two_live_reservations_violate_only_from_the_given_time_on(since: int, count: int) -> None:
    assert len(check_one_live([HELD, SECOND, RELEASED], BEHIND, since=since)) == count


def test_two_reservations_that_stay_live_violate_every_contract() -> None:
    assert len(check_one_live([HELD, SECOND], BEHIND, since=1_000)) == 1


def test_reservations_of_two_items_may_be_live_at_once() -> None:
    assert check_one_live([HELD, SECOND], {"r-1": "item", "r-2": "other"}) == []


def _waiting(quantity: int, state: cart_pb2.Reservation.State.ValueType) -> Call:
    request = cart_service_pb2.AddItemRequest(parent=KEY.name, max_wait=Duration(seconds=1))
    item = cart_pb2.Item(
        quantity=quantity, reservation=cart_pb2.Reservation(state=state), reconciling=state == State.STATE_PENDING
    )
    reply = cart_service_pb2.AddItemResponse(item=item).SerializeToString()
    return Call(KEY.name, "AddItem", request.SerializeToString(), "once", 0, 1, CallOutcome.OK, "OK", reply=reply)


def test_a_replay_with_max_wait_may_differ_in_the_reservation_only() -> None:
    pending, reserved, other = (
        _waiting(2, State.STATE_PENDING),
        _waiting(2, State.STATE_RESERVED),
        _waiting(3, State.STATE_PENDING),
    )
    nothing = Dump([], [], [], {}, {})
    assert check_replays([pending, reserved], nothing) == []
    assert len(check_replays([pending, other], nothing)) == 1


def _cart(uid: str, revision: int, state: CartState = CartState.ACTIVE) -> RowVersion:
    cart = Cart(KEY, uid, state, {}, "", False, None, 0, 0, 0, 0, 256, revision, revision, NOW, NOW)
    return RowVersion(NOW, cart)


def _delete(revision: int) -> Operation:
    return Operation(KEY.name, "DeleteCart", "", 0, 1, None, None, revision, revision)


def test_an_expired_cart_counts_as_an_operation() -> None:
    (found,) = expiries([_cart("one", 3), _cart("one", 4, CartState.EXPIRED), _cart("one", 4, CartState.EXPIRED)], [])
    assert (found.rpc, found.revision, found.hidden) == ("Expire", 4, False)


def test_an_expiry_is_found_even_if_its_transaction_created_the_next_cart() -> None:
    (found,) = expiries([_cart("one", 3), _cart("two", 5)], [])
    assert (found.rpc, found.revision, found.hidden) == ("Expire", 3, True)


def test_a_deleted_cart_has_no_expiry() -> None:
    assert expiries([_cart("one", 3), _cart("two", 5)], [_delete(4)]) == []
    assert len(expiries([_cart("one", 3), _cart("two", 5)], [_delete(2)])) == 1


def test_an_expiry_is_found_only_once() -> None:
    assert len(expiries([_cart("one", 3), _cart("one", 4, CartState.EXPIRED), _cart("two", 5)], [])) == 1
