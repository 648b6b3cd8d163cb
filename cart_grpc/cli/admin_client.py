"""A client of `cartgrpc.v1.CartAdminService` for the operators' subcommands: options, the call, pages, output."""

import argparse
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import grpc
from cartgrpc.v1 import cart_admin_service_pb2_grpc
from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from cart_grpc.addresses import host_of, is_loopback, to_dial
from cart_grpc.arguments import duration
from cart_grpc.channels import open_channel
from cart_grpc.connection_arguments import TLS_FILES, add_tls_files, find_tls_files
from cart_grpc.setting_types import check_address
from cart_grpc.settings import Settings, find_file, variable_of
from cart_grpc.startup import StartupError
from cart_grpc.terminal import complain, say
from cart_grpc.tls.client import explain
from cart_grpc.tls.reloaded_files import FileError

Stub = cart_admin_service_pb2_grpc.CartAdminServiceStub
TIMEOUT_SECONDS = 30
# The settings that are used without an option.
_TLS_SETTINGS = {"ca_file": "client_ca_file", "cert_file": "tls_cert_file", "key_file": "tls_key_file"}
# A cell without a value.
NOTHING = "-"
# Makes the calls of a subcommand, and yields the answers.
Calls = Callable[[Stub, argparse.Namespace], Iterable[Message]]


def add_command(
    commands: Any, name: str, call: Calls, description: str, *, show: Callable[[Iterable[Message]], None]
) -> argparse.ArgumentParser:
    """Add a subcommand that makes `call`. `show` prints the answers, unless the arguments have --json."""
    command: argparse.ArgumentParser = commands.add_parser(name, help=description, description=description)
    add_connection(command)
    command.add_argument("--json", action="store_true", help="print one JSON object per line")
    command.set_defaults(run=_run, call=call, show=show)
    return command


def add_connection(command: argparse.ArgumentParser) -> None:
    """Add the options that `with_stub` needs."""
    command.add_argument(
        "--address", metavar="HOST:PORT", help="the server's admin address; default: CART_ADMIN_LISTEN"
    )
    add_tls_files(command, {name: variable_of(setting) for name, setting in _TLS_SETTINGS.items()})


def add_filters(
    command: argparse.ArgumentParser, things: str, age: str, states: Sequence[str], *, by_sku: bool = True
) -> None:
    """Add the options that all lists have: --state, --min-age, --limit and, unless `by_sku` is false, --sku."""
    command.add_argument(
        "--state", action="append", default=[], choices=states, help=f"only {things} in this state; repeatable"
    )
    command.add_argument(
        "--min-age", type=duration, default="0s", metavar="TIME", help=f"only {things} {age}, such as 15m"
    )
    if by_sku:
        command.add_argument("--sku", default="", help=f"only {things} of this sku")
    command.add_argument("--limit", type=int, default=100, metavar="N", help="maximum number (default: %(default)s)")


def _run(settings: Settings, arguments: argparse.Namespace) -> int:
    """Make the calls of a subcommand and print the answers. Returns 0, or 1 if a call was refused or not answered."""

    def show(stub: Stub) -> int:
        (show_json if arguments.json else arguments.show)(arguments.call(stub, arguments))
        return 0

    return with_stub(settings, arguments, show, unanswered=1)


def with_stub(settings: Settings, arguments: argparse.Namespace, use: Callable[[Stub], int], *, unanswered: int) -> int:
    """Return what `use` returns for a stub of the server that the arguments or the settings name.

    Complains in one line and returns `unanswered` if a call was refused or not answered. Raises StartupError if the
    address or a file for TLS cannot be used.
    """
    listens = arguments.address or settings.admin_listen
    if not listens:
        raise StartupError("CART_ADMIN_LISTEN is not set; set it or use --address")
    try:
        address = to_dial(check_address(listens))
    except ValueError as error:
        raise StartupError(f"the address {error}") from None
    with open_channel(address, credentials=_find_credentials(settings, arguments, listens)) as channel:
        try:
            return use(cart_admin_service_pb2_grpc.CartAdminServiceStub(channel))
        except grpc.RpcError as error:
            detail = " ".join(explain(error.details() or "").split())[:300]
            complain(f"{address}: {error.code().name}: {detail}")
        except json_format.Error as error:
            complain(f"{address}: its answer cannot be shown: {error}")
    return unanswered


def _find_credentials(
    settings: Settings, arguments: argparse.Namespace, address: str
) -> grpc.ChannelCredentials | None:
    """Return the credentials for TLS; None for a loopback address, where the port for operators has no TLS."""
    if is_loopback(host_of(address)) and not any(getattr(arguments, name) for name in TLS_FILES):
        return None
    try:
        files = find_tls_files(arguments, lambda name: find_file(settings, _TLS_SETTINGS[name]))
        if not files.certificate:
            raise StartupError(
                f"{address} is beyond loopback, so operators need a certificate: set --cert-file and --key-file, or "
                "CART_TLS_CERT_FILE and CART_TLS_KEY_FILE"
            )
        return files.to_credentials()
    except FileError as error:
        raise StartupError(str(error)) from None


def fetch_pages(method: Any, request: Any, limit: int) -> Iterator[Message]:
    """Yield up to `limit` entries of a list, page after page. A page may be empty and have a next page."""
    while limit > 0:
        request.page_size = min(limit, 500)
        page = method(request, timeout=TIMEOUT_SECONDS)
        [entries] = [value for field, value in page.ListFields() if field.is_repeated] or [()]
        yield from entries
        limit -= len(entries)
        # The same token twice would be a list without end.
        if page.next_page_token in ("", request.page_token):
            return
        request.page_token = page.next_page_token


@contextmanager
def arguments_in_range() -> Iterator[None]:
    """Raise StartupError if an argument does not fit into the field of a request."""
    try:
        yield
    except (ValueError, OverflowError) as error:
        raise StartupError(f"an argument is out of range: {error}") from None


def show_json(messages: Iterable[Message]) -> None:
    """Print one JSON object per line."""
    for message in messages:
        say_json(json_format.MessageToDict(message))


def say_json(value: Any) -> None:
    """Print a value as one line of JSON."""
    # DEL is the one invisible character that this leaves as it is.
    say(json.dumps(value).replace("\x7f", r"\u007f"))


def show_word(enum: Any, number: int) -> str:
    """Return the name of an enum's value. A newer server may have values that this command does not know."""
    if number not in enum.values():
        return str(number)
    return str(enum.Name(number)).removeprefix("STATE_").removeprefix("DISPOSITION_")


def show_moment(timestamp: Timestamp) -> str:
    """Return the time in UTC, to the second."""
    try:
        return f"{timestamp.ToDatetime():%Y-%m-%dT%H:%M:%SZ}"
    except (ValueError, OverflowError):
        return f"{timestamp.seconds} s"


def show_age(timestamp: Timestamp) -> str:
    """Return how long ago the time was, by this machine's clock, as `show_seconds` does."""
    return show_seconds(age_of(timestamp))


def age_of(timestamp: Timestamp) -> int:
    """Return how many seconds ago the time was, by this machine's clock; 0 for a time in the future."""
    return max(0, int(time.time()) - timestamp.seconds)


def show_seconds(seconds: int) -> str:
    """Return a duration in its two largest units: 42s, 3m10s, 2h05m, 4d03h."""
    if seconds < 60:
        return f"{seconds}s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes}m{seconds:02}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours < 24 else f"{hours // 24}d{hours % 24:02}h"
