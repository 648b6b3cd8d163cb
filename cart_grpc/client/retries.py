"""The errors after which a call is repeated, and the delay before that.

Every repetition is safe: a read changes nothing, and a mutation keeps its request_id. The other errors are answers, and
the same call would get the same answer again.
"""

import random
from typing import Final

import grpc

from cart_grpc.client.errors import CartError

# Short, so that a caller notices within a fraction of a second that a server is back.
FIRST_SECONDS: Final = 0.05
MAX_SECONDS: Final = 0.5
# The longest wait for a server that asks for time.
MAX_RETRY_AFTER: Final = 60.0


def find_delay(error: CartError, attempt: int) -> float | None:
    """How many seconds to wait after `error` of the attempt number `attempt`, which counts from 0.

    The delay is what RetryInfo asks for, plus exponential backoff with full jitter. Returns None if the call must not
    be repeated.
    """
    if not _may_repeat(error):
        return None
    backoff = min(MAX_SECONDS, FIRST_SECONDS * 2 ** min(attempt, 10))
    return min(error.retry_after or 0.0, MAX_RETRY_AFTER) + random.uniform(0, backoff)  # noqa: S311 - no secret


def _may_repeat(error: CartError) -> bool:
    match error.code:
        case grpc.StatusCode.UNAVAILABLE:
            return True
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return error.retry_after is not None
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            # The server's time limit. Without a reason, it is the call's own deadline.
            return error.reason == "CALL_TIMEOUT"
        case grpc.StatusCode.CANCELLED:
            # gRPC resets calls that reach a server that is stopping, and gives no reason.
            return not error.reason
        case _:
            return False
