"""A client of cartgrpc.v1.CartService: `CartClient` for asyncio, and `SyncCartClient` for calls that block.

It needs the package without extras, and imports nothing of the server. Answers are the messages of `cartgrpc.v1`.
"""

from cart_grpc.client._async.cart import AsyncCart
from cart_grpc.client._async.client import CartClient
from cart_grpc.client._sync.cart import SyncCart
from cart_grpc.client._sync.client import SyncCartClient
from cart_grpc.client.arguments import UNSET
from cart_grpc.client.errors import (
    Aborted,
    AlreadyExists,
    CartError,
    DeadlineExceeded,
    FailedPrecondition,
    FieldError,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    Violation,
)

Cart = AsyncCart

__all__ = [
    "UNSET",
    "Aborted",
    "AlreadyExists",
    "AsyncCart",
    "Cart",
    "CartClient",
    "CartError",
    "DeadlineExceeded",
    "FailedPrecondition",
    "FieldError",
    "InvalidArgument",
    "NotFound",
    "PermissionDenied",
    "ResourceExhausted",
    "SyncCart",
    "SyncCartClient",
    "Unauthenticated",
    "Unavailable",
    "Violation",
]
