"""The one place that opens gRPC channels: to servers of this service, and to the Reservation API."""

from collections.abc import Sequence
from typing import Final

import grpc

Options = Sequence[tuple[str, int]]
_OPTIONS: Final[Options] = (
    # gRPC would obey `http_proxy`, which is for web pages: a proxy refuses gRPC, or sees calls that are not for it.
    ("grpc.enable_http_proxy", 0),
    # Channels with equal options share connections by default.
    ("grpc.use_local_subchannel_pool", 1),
)


def open_channel(
    address: str, options: Options = (), credentials: grpc.ChannelCredentials | None = None
) -> grpc.Channel:
    """Open a channel to `address` (HOST:PORT) for calls that block, with TLS if there are `credentials`.

    It connects at the first call.
    """
    together = (*_OPTIONS, *options)
    if credentials is None:
        return grpc.insecure_channel(_target(address), options=together)
    return grpc.secure_channel(_target(address), credentials, options=together)


def open_async_channel(
    address: str, options: Options, credentials: grpc.ChannelCredentials | None = None
) -> grpc.aio.Channel:
    """Open a channel to `address` (HOST:PORT) in the running event loop, with TLS if there are `credentials`.

    It connects at the first call.
    """
    together = (*_OPTIONS, *options)
    if credentials is None:
        return grpc.aio.insecure_channel(_target(address), options=together)
    return grpc.aio.secure_channel(_target(address), credentials, options=together)


def _target(address: str) -> str:
    return f"dns:///{address}"
