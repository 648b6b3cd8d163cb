"""A Reservation API whose calls are traced."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from cart_grpc.protocol.reservation import Decision, Intent
from cart_grpc.reservation_api.api import (
    UNRECORDED,
    Answer,
    Applied,
    Attempt,
    BatchesUnsupported,
    NoAnswerError,
    ReservationApi,
)
from cart_grpc.tracing import Tracer


class TracedApi:
    """Implements ReservationApi over `api`. Each call has a span if one of its intents has a trace context."""

    def __init__(self, api: ReservationApi, tracer: Tracer) -> None:
        self.max_batch = api.max_batch
        self.close = api.close
        self._api = api
        self._tracer = tracer

    async def apply(self, intent: Intent, *, timeout: float, attempt: Attempt = UNRECORDED) -> Answer:
        """See ReservationApi.apply."""
        with self._tracer.attempt([intent.trace_context], is_batch=False) as span:
            try:
                answer = await self._api.apply(intent, timeout=timeout, attempt=attempt)
            except NoAnswerError as error:
                span.note_failure(error.code)
                raise
            if isinstance(answer, Decision):
                span.note_answer(answer.state.name)
            else:
                span.note_failure(str(answer).partition(":")[0])
            return answer

    async def apply_batch(
        self, intents: Sequence[Intent], *, timeout: float
    ) -> AsyncGenerator[Sequence[Applied], None]:
        """See ReservationApi.apply_batch."""
        with self._tracer.attempt([intent.trace_context for intent in intents], is_batch=True) as span:
            try:
                async with aclosing(self._api.apply_batch(intents, timeout=timeout)) as arriving:
                    async for applied in arriving:
                        yield applied
            except (BatchesUnsupported, NoAnswerError) as error:
                span.note_failure(error.code)
                raise
