"""The subcommands for operators about checkouts: `cart-grpc checkouts list | show | end`."""

import argparse
from collections.abc import Iterable, Iterator, Sequence

from cartgrpc.v1 import cart_admin_service_pb2 as pb
from cartgrpc.v1 import cart_pb2
from google.protobuf.message import Message

from cart_grpc.cli.admin_client import (
    TIMEOUT_SECONDS,
    Stub,
    add_command,
    add_filters,
    arguments_in_range,
    fetch_pages,
    show_word,
)
from cart_grpc.cli.admin_tables import checkout_lines
from cart_grpc.terminal import escape, say, to_table

Checkout = cart_pb2.Checkout
STATES = tuple(name.removeprefix("STATE_").lower() for name in Checkout.State.keys()[1:])


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands to `cart-grpc checkouts`."""
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    description = "list checkouts, the longest in their state first; by default those that are completing or failed"
    listing = add_command(commands, "list", _list, description, show=_show_tables)
    add_filters(listing, "checkouts", "that are in their state for this long", STATES, by_sku=False)
    listing.add_argument("--order", default="", metavar="REFERENCE", help="only checkouts with this order reference")
    show = add_command(commands, "show", _show, "show checkouts with their items", show=_show_tables)
    show.add_argument("checkout", nargs="+", help="name")
    description = "end checkouts: the carts of open ones are active again, and the sold items of failed ones stay sold"
    end = add_command(commands, "end", _end, description, show=_show_tables)
    end.add_argument("checkout", nargs="+", help="name")
    end.add_argument("--reason", required=True, help="the reason, for the log")
    end.add_argument(
        "--force", action="store_true", help="count the items of completing ones as sold, without an answer"
    )


def _list(stub: Stub, arguments: argparse.Namespace) -> Iterator[Message]:
    with arguments_in_range():
        states = [Checkout.State.Value(f"STATE_{name.upper()}") for name in arguments.state]
        request = pb.CartAdminServiceListCheckoutsRequest(states=states, order_reference=arguments.order)
        request.min_age.FromMicroseconds(arguments.min_age)
    return fetch_pages(stub.ListCheckouts, request, arguments.limit)


def _show(stub: Stub, arguments: argparse.Namespace) -> Iterator[Message]:
    for name in arguments.checkout:
        with arguments_in_range():
            request = pb.CartAdminServiceGetCheckoutRequest(name=name)
        yield stub.GetCheckout(request, timeout=TIMEOUT_SECONDS).checkout


def _end(stub: Stub, arguments: argparse.Namespace) -> Iterator[Message]:
    for name in arguments.checkout:
        with arguments_in_range():
            request = pb.EndCheckoutRequest(name=name, reason=arguments.reason, force=arguments.force)
        yield stub.EndCheckout(request, timeout=TIMEOUT_SECONDS).checkout


def _show_tables(messages: Iterable[Message]) -> None:
    found = [message for message in messages if isinstance(message, Checkout)]
    say(*checkout_lines(found))
    items = [item for checkout in found for item in checkout.items]
    if items:
        say("")
        item_header = ("ITEM", "SKU", "QTY", "STATE", "RESERVATION", "TRIES", "WHY")
        say(*to_table([item_header, *map(_item_row, items)]))


def _item_row(item: cart_pb2.Item) -> Sequence[str]:
    reservation = item.reservation
    return (
        item.name,
        item.sku,
        str(item.quantity),
        show_word(cart_pb2.Reservation.State, reservation.state),
        reservation.reservation_id,
        str(reservation.attempt_count),
        escape(reservation.reason or reservation.message),
    )
