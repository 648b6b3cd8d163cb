"""Full batches and look-ups with the longest skus that a cart accepts, over every transport."""

from cartgrpc.reservation.v1 import reservation_pb2
from google.protobuf import json_format

from cart_grpc.protocol.reservation import Disposition, Observed, StaleRevision
from cart_grpc.reservation_api import wire
from cart_grpc.reservation_api.api import ReservationApi
from cart_grpc.reservation_api.grpc_api import GrpcReservationApi
from cart_grpc.reservation_api.http_api import HttpReservationApi
from cart_grpc.rpc.fields import MAX_SKU
from cart_grpc.simulator import codec
from tests.intents import after, hold
from tests.reservation_api.test_batches import apply_all

# UTF-8 needs four bytes for each character, and JSON as most libraries write it twelve.
LONGEST_SKU = "\U0001f36b" * MAX_SKU
LONG = {"quantity": 1, "ttl_us": 86_459_123_456, "revision": 2**52 - 1, "sku": LONGEST_SKU}


async def test_a_full_batch_of_the_longest_skus_gets_all_its_decisions(api: ReservationApi) -> None:
    intents = [hold(**LONG) for _ in range(api.max_batch)]  # type: ignore[arg-type]
    outcomes, error = await apply_all(api, intents)
    assert (len(outcomes), error) == (100, None)
    assert {getattr(each, "state", None) for each in outcomes.values()} == {Observed.HELD, Observed.REJECTED}
    await apply_all(api, [after(each, Disposition.RELEASE) for each in intents])
    overtaken, error = await apply_all(api, intents)
    assert (len(overtaken), error) == (100, None)
    assert all(isinstance(each, StaleRevision) for each in overtaken.values())


async def test_the_largest_look_up_of_the_longest_skus_is_answered(api: ReservationApi) -> None:
    assert isinstance(api, GrpcReservationApi | HttpReservationApi)
    intents = [hold(**LONG) for _ in range(codec.MAX_LOOKUP)]  # type: ignore[arg-type]
    for start in range(0, codec.MAX_LOOKUP, api.max_batch):
        await apply_all(api, intents[start : start + api.max_batch])
    found, missing = await api.look_up([each.reservation_id for each in intents], timeout=30)
    assert (len(found), missing) == (codec.MAX_LOOKUP, [])


def test_no_request_is_longer_than_the_contract_says() -> None:
    entries = [wire.to_message(hold(**LONG)) for _ in range(wire.MAX_BATCH)]  # type: ignore[arg-type]
    request = reservation_pb2.BatchApplyReservationsRequest(reservations=entries)
    assert len(json_format.MessageToJson(request, indent=None)) < 256 * 1024
    assert len(json_format.MessageToJson(request, indent=None)) > 128 * 1024
