"""The gRPC code and the HTTP status of each error, in one table."""

from typing import Final

import grpc

from cart_grpc.simulator.errors import (
    BadRequest,
    BodyMismatch,
    CallFailed,
    Lost,
    NoBatches,
    NotReserved,
    RevisionTooLow,
    SimulatorError,
    Throttled,
    Unauthenticated,
    UnknownReservation,
)

_CODES: Final[dict[type[SimulatorError], tuple[grpc.StatusCode, int]]] = {
    BadRequest: (grpc.StatusCode.INVALID_ARGUMENT, 400),
    BodyMismatch: (grpc.StatusCode.INVALID_ARGUMENT, 400),
    NotReserved: (grpc.StatusCode.FAILED_PRECONDITION, 409),
    RevisionTooLow: (grpc.StatusCode.ABORTED, 409),
    UnknownReservation: (grpc.StatusCode.NOT_FOUND, 404),
    Throttled: (grpc.StatusCode.RESOURCE_EXHAUSTED, 429),
    NoBatches: (grpc.StatusCode.UNIMPLEMENTED, 404),
    Unauthenticated: (grpc.StatusCode.UNAUTHENTICATED, 401),
    CallFailed: (grpc.StatusCode.UNAVAILABLE, 503),
    Lost: (grpc.StatusCode.UNAVAILABLE, 503),
}


def get_grpc_code(error: SimulatorError) -> grpc.StatusCode:
    """Return the gRPC code of `error`."""
    return _CODES[type(error)][0]


def get_http_status(error: SimulatorError) -> int:
    """Return the HTTP status of `error`."""
    return _CODES[type(error)][1]
