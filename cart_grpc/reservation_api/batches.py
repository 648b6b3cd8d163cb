"""One batch call, for all transports: which entries have an outcome, and how much the server may send."""

from collections.abc import Sequence
from typing import Final

from cartgrpc.reservation.v1 import reservation_pb2

from cart_grpc.protocol.reservation import Intent
from cart_grpc.reservation_api import wire
from cart_grpc.reservation_api.api import Answer, Applied, NoAnswerError

_MAX_MESSAGES: Final = 2 * wire.MAX_BATCH


class Batch:
    """The intents of one batch call. `request` is the message to send.

    `unsendable` are the outcomes of intents that no message can hold. `request` does not contain them.
    """

    def __init__(self, intents: Sequence[Intent]) -> None:
        self.request = reservation_pb2.BatchApplyReservationsRequest()
        self.unsendable: list[Applied] = []
        self._open: dict[str, tuple[int, Intent]] = {}
        self._messages = self._bytes = 0
        for position, intent in enumerate(intents):
            try:
                self.request.reservations.append(wire.to_message(intent))
            except NoAnswerError as error:
                self.unsendable.append(Applied(position, error))
            else:
                self._open[intent.reservation_id] = position, intent

    @property
    def complete(self) -> bool:
        """Whether every intent has an outcome."""
        return not self._open

    def receive(self, size: int) -> None:
        """Count a message of `size` bytes. Raises NoAnswerError("INVALID_ANSWER") if the server sends too much."""
        self._messages += 1
        self._bytes += size
        if size > wire.MAX_BATCH_MESSAGE_BYTES or self._bytes > wire.MAX_BATCH_BYTES or self._messages > _MAX_MESSAGES:
            raise wire.invalid_answer(f"the answer is too long: {self._messages} messages of {self._bytes >> 10} KiB")

    def read(self, message: reservation_pb2.BatchApplyReservationsResponse) -> list[Applied]:
        """Return the outcomes in `message`.

        A result for an id that was not asked about, or that has an outcome already, is ignored.
        """
        applied = []
        for result in message.results:
            found = self._open.pop(result.reservation_id, None)
            if found is not None:
                position, intent = found
                applied.append(Applied(position, _to_outcome(result, intent)))
        return applied


def _to_outcome(result: reservation_pb2.ReservationResult, intent: Intent) -> Answer | NoAnswerError:
    try:
        return wire.to_outcome(result, intent)
    except NoAnswerError as error:
        return error
