"""A batch call in the simulated network: entries are decided one by one, and results come in a stream that may break.

The network decides the fate of each entry as it does for a single message. The stream adds its own faults: it breaks,
ends early, hangs, repeats results, and carries the results in any order and in messages of any size. The entries that
are decided after the call has failed take effect all the same.
"""

import asyncio
from collections.abc import Callable, Sequence
from random import Random

from cart_grpc.protocol.reservation import Intent
from cart_grpc.reservation_api import wire
from cart_grpc.reservation_api.api import Answer, BatchesUnsupported, NoAnswerError
from cart_grpc.simulator import codec
from cart_grpc.simulator.simulator import Outcome, SimulatedReply
from tests.simulation.loop import Process

# A message, an error, or None for the end of the stream without an error.
Event = bytes | NoAnswerError | BatchesUnsupported | None


class BatchCall:
    """One batch call. `events` are what its sender receives, in order.

    `breaks` says how the stream ends before all results were sent, after `most` messages: with an error, without one
    ("half"), or not at all ("hang"). It is "" for a stream that ends when the last entry is decided.
    """

    def __init__(self, process: Process, intents: Sequence[Intent]) -> None:
        self.process = process
        self.intents = intents
        self._ids = [intent.reservation_id for intent in intents]
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self.undecided = set(range(len(intents)))
        self.breaks = ""
        self.most = 0
        self.ends_at = 0.0
        self._message_count = 0
        self._is_over = False

    def break_up(self, how: str, rng: Random) -> None:
        """Let the stream end early, in the way `how`."""
        self.breaks, self.most = how, rng.randint(0, min(len(self.intents), 3))

    def decided(self, outcomes: Sequence[Outcome], send: Callable[[Event], None], *, doubled: bool) -> None:
        """Send the results of entries that were decided now, and the end if they were the last."""
        for message in [*codec.to_batch_responses(self._ids, outcomes)] * (2 if doubled else 1):
            if self.breaks and self._message_count >= self.most:
                break
            self._message_count += 1
            self._send(codec.NOT_A_MESSAGE if message is None else message.SerializeToString(), send)
        if self.breaks and (self._message_count >= self.most or not self.undecided):
            self.end(self.breaks, send)
        elif not self.undecided:
            self.end("half", send)

    def end(self, how: str, send: Callable[[Event], None]) -> None:
        """End the stream."""
        if how == "error":
            self._send(NoAnswerError("UNAVAILABLE", "the stream broke"), send)
        elif how == "half":
            self._send(None, send)
        self._is_over = True

    def _send(self, event: Event, send: Callable[[Event], None]) -> None:
        if not self._is_over:
            send(event)
        self._is_over = self._is_over or not isinstance(event, bytes)


def to_answer(reply: SimulatedReply, intent: Intent) -> "Answer | NoAnswerError":
    """Return the outcome that the sender of a single message gets."""
    response = codec.to_response(reply)
    try:
        if response is None:
            raise wire.invalid_answer("no message")
        return wire.to_decision(response.reservation, intent)
    except NoAnswerError as nonsense:
        return nonsense
