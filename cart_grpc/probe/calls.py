"""Single calls of the API, timed and counted, and repeated where that may help and does no harm."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, wait_random_exponential

from cart_grpc.reservation_api.api import NoAnswerError

T = TypeVar("T")

SECOND: Final = 1_000_000
TRIES: Final = 3

_LONGEST_WAIT: Final = 10.0
_backoff = wait_random_exponential(multiplier=0.1, max=2)


@dataclass(slots=True)
class Log:
    """What the sessions of one probe went through.

    `latencies` in seconds, of calls that were answered; `unanswered` calls; pieces `sold`; reservations that were
    `released`, and those that could not be and are `stuck`, each with the reason.
    """

    latencies: list[float] = field(default_factory=list)
    unanswered: int = 0
    sold: int = 0
    released: int = 0
    stuck: list[str] = field(default_factory=list)


async def call_once(log: Log, call: Callable[[], Awaitable[T]]) -> T:
    """Make `call` and return the answer. Raises NoAnswerError."""
    now = asyncio.get_running_loop().time
    started = now()
    try:
        answer = await call()
    except NoAnswerError:
        log.unanswered += 1
        raise
    log.latencies.append(now() - started)
    return answer


async def call_again(log: Log, call: Callable[[], Awaitable[T]]) -> T:
    """Make `call` and return the answer. Raises NoAnswerError if there is none after a few tries."""
    retrying = AsyncRetrying(
        stop=stop_after_attempt(TRIES), wait=_wait, retry=retry_if_exception(_is_passing), reraise=True
    )
    return await retrying(call_once, log, call)


def breaks_contract(error: NoAnswerError) -> bool:
    """Whether the API did say something, only nothing that the contract knows."""
    return error.code in ("INVALID_ANSWER", "ABORTED")


def _is_passing(error: BaseException) -> bool:
    """Whether asking again may help. A time-out is not worth as much time again, and what is not found stays so."""
    if not isinstance(error, NoAnswerError) or breaks_contract(error):
        return False
    return error.code not in ("DEADLINE_EXCEEDED", "HTTP_404")


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked = error.retry_after_us if isinstance(error, NoAnswerError) else None
    return min(asked / SECOND, _LONGEST_WAIT) if asked else _backoff(state)
