"""The errors after which a call is repeated, and the delay before that.

Every repetition is safe: a read changes nothing, and a mutation keeps its request_id. The other errors are answers, and
the same call would get the same answer again.
"""

import random
from typing import Final

import grpc

from cart_grpc.client import service_config
from cart_grpc.client.errors import CartError

# All reads have the same policy. Its maxAttempts is for clients without a deadline for all attempts.
_POLICY: Final = service_config.retry_policy("cartgrpc.v1.CartService", "GetCart")
# Short, so that a caller notices within a fraction of a second that a server is back.
FIRST_SECONDS: Final = service_config.to_seconds(_POLICY["initialBackoff"])
MAX_SECONDS: Final = service_config.to_seconds(_POLICY["maxBackoff"])
_MULTIPLIER: Final[float] = _POLICY["backoffMultiplier"]
# The longest wait for a server that asks for time.
MAX_RETRY_AFTER: Final = 60.0


def find_delay(error: CartError, attempt: int) -> float | None:
    """How many seconds to wait after `error` of the attempt number `attempt`, which counts from 0.

    The delay is what RetryInfo asks for, plus exponential backoff with full jitter. Returns None if the call must not
    be repeated.
    """
    if not _may_repeat(error):
        return None
    backoff = min(MAX_SECONDS, FIRST_SECONDS * _MULTIPLIER ** min(attempt, 10))
    return min(error.retry_after or 0.0, MAX_RETRY_AFTER) + random.uniform(0, backoff)  # noqa: S311 - no secret


def _may_repeat(error: CartError) -> bool:
    if error.code.name in _POLICY["retryableStatusCodes"]:
        return True
    match error.code:
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
