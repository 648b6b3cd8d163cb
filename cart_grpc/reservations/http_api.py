"""The Reservation API over HTTP: the same messages as proto3 JSON."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from google.protobuf import json_format
from reservation.v1 import reservation_pb2

from cart_grpc.carts.reservation import Intent
from cart_grpc.reservations import wire
from cart_grpc.reservations.api import UNRECORDED, Answer, Attempt
from cart_grpc.reservations.http_client import REFUSALS, HttpAnswer, HttpClient


class HttpReservationApi:
    """Implements ReservationApi at `base_url` over `client`, which is closed with it."""

    def __init__(self, base_url: str, client: HttpClient) -> None:
        self._base = base_url.rstrip("/")
        self._client = client

    async def apply(self, intent: Intent, *, timeout: float, attempt: Attempt = UNRECORDED) -> Answer:
        """See ReservationApi.apply."""
        request = reservation_pb2.ApplyReservationRequest(reservation=wire.to_message(intent))
        url = f"{self._base}/v1/reservations/{quote(intent.reservation_id, safe='')}"
        answer = await self._client.call("PUT", url, json_format.MessageToDict(request), timeout=timeout)
        if answer.status == 200:
            return wire.to_decision(_to_reservation(answer.to_object()), intent)
        if answer.status in REFUSALS:
            return _to_refusal_or_overtaken(answer, intent)
        raise answer.to_no_answer(self._client.clock())

    async def close(self) -> None:
        """See ReservationApi.close."""
        await self._client.close()


def _to_reservation(body: Mapping[str, Any]) -> reservation_pb2.Reservation:
    value = body.get("reservation")
    if not isinstance(value, dict):
        raise wire.invalid_answer("the answer holds no reservation")
    try:
        # Only what we know: a newer API may say more.
        return json_format.ParseDict(value, reservation_pb2.Reservation(), ignore_unknown_fields=True)
    except Exception as error:  # noqa: BLE001 - ParseError, and whatever else escapes json_format for odd values
        raise wire.invalid_answer(f"the answer holds no reservation: {error}") from None


def _to_refusal_or_overtaken(answer: HttpAnswer, intent: Intent) -> Answer:
    name, reason, message = answer.to_error()
    if answer.status == 409 and name == "ABORTED":
        return wire.to_overtaken(_to_reservation(answer.to_object()), intent)
    return wire.to_refusal(reason, name, message)
