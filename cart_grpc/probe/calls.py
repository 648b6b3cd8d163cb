"""Single calls to the API: timed, counted, and repeated if that can help and does no harm."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, wait_random_exponential

from cart_grpc.reservation_api.api import NoAnswerError
from cart_grpc.units import to_seconds

T = TypeVar("T")

MAX_TRIES: Final = 3

MISSING_METHOD: Final = frozenset({"UNIMPLEMENTED", "HTTP_404", "HTTP_405", "HTTP_501"})
"""The codes with which an API answers a call that it does not offer."""

_MAX_WAIT_SECONDS: Final = 10.0
_backoff = wait_random_exponential(multiplier=0.1, max=2)


@dataclass(slots=True)
class Log:
    """The statistics of all sessions of one probe.

    `latencies` are those of answered calls, in seconds. `unanswered` counts calls, `sold` units, `released`
    reservations. `left_behind` describes each reservation that could not be released, with the reason.
    """

    latencies: list[float] = field(default_factory=list)
    unanswered: int = 0
    sold: int = 0
    released: int = 0
    left_behind: list[str] = field(default_factory=list)


async def call_once(log: Log, call: Callable[[], Awaitable[T]]) -> T:
    """Make `call` and return the answer. Raises NoAnswerError."""
    now = asyncio.get_running_loop().time
    start = now()
    try:
        answer = await call()
    except NoAnswerError:
        log.unanswered += 1
        raise
    log.latencies.append(now() - start)
    return answer


async def call_with_retries(log: Log, call: Callable[[], Awaitable[T]], tries: int = MAX_TRIES) -> T:
    """Make `call`, up to `tries` times, and return the answer. Raises NoAnswerError if there is none."""
    retrying = AsyncRetrying(
        stop=stop_after_attempt(tries), wait=_wait, retry=retry_if_exception(_is_transient), reraise=True
    )
    return await retrying(call_once, log, call)


def breaks_contract(error: NoAnswerError) -> bool:
    """Whether the API answered, but not in a form that the contract allows."""
    return error.code in ("INVALID_ANSWER", "ABORTED")


def _is_transient(error: BaseException) -> bool:
    """Whether a retry can help. A time-out is not worth the same wait again, and a missing method stays missing."""
    if not isinstance(error, NoAnswerError) or breaks_contract(error):
        return False
    return error.code not in ("DEADLINE_EXCEEDED", *MISSING_METHOD)


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    retry_after_us = error.retry_after_us if isinstance(error, NoAnswerError) else None
    return min(to_seconds(retry_after_us), _MAX_WAIT_SECONDS) if retry_after_us else _backoff(state)
