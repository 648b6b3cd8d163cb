"""Whether the Reservation API takes batches: asked by sending one, remembered, and asked again after a while."""

from collections.abc import Callable
from typing import Final

from cart_grpc.logs import events
from cart_grpc.logs.log import Log
from cart_grpc.reservation_api.api import DENIALS, BatchesUnsupported
from cart_grpc.units import format_duration, to_us

log = Log(__name__)
# An API that gains batches is noticed a few minutes after its upgrade. To ask costs one refused call, so an API that
# never gains them loses nothing.
ASK_AGAIN_US: Final = to_us(300)
# A token that has expired says nothing about batches, but a proxy that knows only single calls may answer like that.
ASK_AGAIN_AFTER_DENIAL_US: Final = to_us(10)
# A proxy may garble the stream of a batch's answer although single calls pass it. So many unreadable answers in a row
# count as a refusal: otherwise nothing would be reserved.
MAX_UNREADABLE: Final = 3


class BatchSupport:
    """Remembers what the API said about batches. `most` is the most that one may have, `clock` is monotonic."""

    def __init__(self, most: int, clock: Callable[[], int]) -> None:
        self._most = most
        self._clock = clock
        self._ask_again_time: int | None = None
        self._unreadable_count = 0

    @property
    def max_batch(self) -> int:
        """The most intents to send in one call now; 1 while the API is known to have only single calls."""
        is_unsupported = self._ask_again_time is not None and self._clock() < self._ask_again_time
        return 1 if is_unsupported else self._most

    def note_refusal(self, reason: Exception) -> None:
        """Note that the API refused a batch."""
        is_denial = isinstance(reason, BatchesUnsupported) and reason.code in DENIALS
        pause_us = ASK_AGAIN_AFTER_DENIAL_US if is_denial else ASK_AGAIN_US
        if self._ask_again_time is None:
            shown = format_duration(pause_us)
            text = "the Reservation API takes no batches (%s): asking again every %s"
            log(events.BATCHES_UNSUPPORTED, text, reason, shown)
        self._ask_again_time = self._clock() + pause_us

    def note_unreadable(self, reason: Exception) -> None:
        """Note that the answer to a batch had no outcome that could be read."""
        self._unreadable_count += 1
        if self._unreadable_count >= MAX_UNREADABLE:
            self.note_refusal(reason)

    def note_support(self) -> None:
        """Note that the API took a batch."""
        if self._ask_again_time is not None:
            log(events.BATCHES_SUPPORTED, "the Reservation API takes batches now")
        self._ask_again_time = None
        self._unreadable_count = 0
