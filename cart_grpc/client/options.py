"""gRPC's options for the client's channels."""

from typing import Final

from cart_grpc.channels import Options

OPTIONS: Final[Options] = (
    # The client repeats calls itself, with a request_id. A second layer would multiply the attempts.
    ("grpc.enable_retries", 0),
    # How soon gRPC connects again. Its defaults, 1 s to 2 min, kept a caller out for 10 s after a restart of 3 s.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 300),
    # How long one attempt to connect may take, in spite of its name. The default is 20 s: too long for packets that are
    # dropped while a server is replaced.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    # A replaced server may have a new address. The default looks a name up every 30 s at most.
    ("grpc.dns_min_time_between_resolutions_ms", 1_000),
    # Find a dead peer within 30 s while a call runs. The server allows a ping every 10 s.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
)
