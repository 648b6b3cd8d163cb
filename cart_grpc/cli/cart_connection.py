"""The connection of `cart-grpc cart` to a server: address, TLS and token, from options and environment variables."""

import argparse
import os
from typing import Final

from cart_grpc.addresses import host_of, is_loopback
from cart_grpc.arguments import duration
from cart_grpc.client import SyncCartClient
from cart_grpc.connection_arguments import TLS_FILES, add_tls_files, find_file, find_tls_files
from cart_grpc.tls.reloaded_files import NamedFile
from cart_grpc.units import US_PER_SECOND

ADDRESS_VARIABLE: Final = "CARTGRPC_ADDRESS"
TLS_VARIABLE: Final = "CARTGRPC_TLS"
DEFAULT_ADDRESS: Final = "127.0.0.1:50051"


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the options of the connection to `command`."""
    address = os.environ.get(ADDRESS_VARIABLE, DEFAULT_ADDRESS)
    command.add_argument(
        "--address",
        default=address,
        metavar="HOST:PORT",
        help=f"the server; default: {ADDRESS_VARIABLE} or {DEFAULT_ADDRESS}",
    )
    variables = {name: variable_of(name) for name in (*TLS_FILES, "token_file")}
    command.add_argument(
        "--tls",
        action="store_true",
        help=f"use TLS, also without a file below; default: {TLS_VARIABLE}=true, else without TLS",
    )
    add_tls_files(command, variables)
    # Not the token itself: other users of the machine can read the command line.
    command.add_argument(
        "--token-file", metavar="FILE", help=f"file with the bearer token; default: {variables['token_file']}"
    )
    command.add_argument(
        "--timeout", type=duration, default="10s", metavar="TIME", help="for the answer; default: %(default)s"
    )


def connect(arguments: argparse.Namespace) -> SyncCartClient:
    """Return the client for the options. Raises FileError and ValueError if they cannot be used."""
    files = find_tls_files(arguments, _find_default)
    secure = arguments.tls or _is_tls_wanted() or bool(files.named)
    token = find_file(arguments, "token_file", _find_default)
    if token:
        if not secure and not is_loopback(host_of(arguments.address)):
            raise token.fault(f"without TLS, a token may go to a loopback address only; set --tls or {TLS_VARIABLE}")
        token.read_token()
    return SyncCartClient(
        arguments.address,
        timeout=arguments.timeout / US_PER_SECOND,
        # A function, because a watch may outlast a token.
        token=token.read_token if token else None,
        credentials=files.to_credentials() if secure else None,
    )


def _is_tls_wanted() -> bool:
    value = os.environ.get(TLS_VARIABLE, "")
    if value.lower() not in ("", "true", "false"):
        raise ValueError(f"{TLS_VARIABLE} must be true or false")
    return value.lower() == "true"


def _find_default(name: str) -> NamedFile | None:
    variable = variable_of(name)
    path = os.environ.get(variable)
    return NamedFile(variable, path) if path else None


def variable_of(name: str) -> str:
    """Return the environment variable that is used without an option."""
    return f"CARTGRPC_{name.upper()}"
