"""The subcommand `health`: ask a server whether it is ready. Containers run it every few seconds."""

import argparse

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cart_grpc.channels import open_channel
from cart_grpc.exposure import health_address
from cart_grpc.setting_types import check_address
from cart_grpc.settings import Settings
from cart_grpc.startup import StartupError
from cart_grpc.terminal import complain, say

TIMEOUT_SECONDS = 3


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the address."""
    command.add_argument(
        "address", nargs="?", metavar="HOST:PORT", help="default: CART_HEALTH_LISTEN, or CART_LISTEN if it is plaintext"
    )


def run(settings: Settings, arguments: argparse.Namespace) -> int:
    """Print a server's health. Returns 0 if it is SERVING, else 1."""
    try:
        address = check_address(arguments.address or health_address(settings))
    except ValueError as error:
        raise StartupError(f"the address {error}") from None
    host, _, port = address.rpartition(":")
    # A server that listens on all addresses also listens on loopback.
    address = f"{'127.0.0.1' if host in ('0.0.0.0', '[::]') else host}:{port}"  # noqa: S104 - compared, not bound
    with open_channel(address) as channel:
        request = health_pb2.HealthCheckRequest(service="cartgrpc.v1.CartService")
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(request, timeout=TIMEOUT_SECONDS)  # type: ignore[attr-defined]
        except grpc.RpcError as error:
            complain(f"{address} does not answer: {error.code().name}")
            return 1
    states = health_pb2.HealthCheckResponse.ServingStatus
    say(states.Name(answer.status) if answer.status in states.values() else f"UNKNOWN ({answer.status})")
    return 0 if answer.status == states.Value("SERVING") else 1
