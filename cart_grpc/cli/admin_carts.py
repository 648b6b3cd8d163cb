"""The subcommand for operators `cart-grpc carts list`: carts of all users."""

import argparse
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from cartgrpc.v1 import cart_admin_service_pb2 as pb
from cartgrpc.v1 import cart_pb2
from google.protobuf.message import Message

from cart_grpc.cli.admin_client import (
    NOTHING,
    Stub,
    add_command,
    add_filters,
    arguments_in_range,
    fetch_pages,
    show_age,
    show_moment,
    show_word,
)
from cart_grpc.terminal import say, to_table

State = cart_pb2.Cart.State
STATES = tuple(name.removeprefix("STATE_").lower() for name in State.keys()[1:])
HEADER = ("CART", "STATE", "ITEMS", "UNITS", "RECONCILING", "AGE", "UNCHANGED", "EXPIRES")


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand to `cart-grpc carts`."""
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    listing = add_command(commands, "list", _list, "list carts of all users, in a fixed order", show=_show_table)
    add_filters(listing, "carts", "that no caller has changed for this long", STATES)
    listing.add_argument(
        "--user-prefix", default="", metavar="TEXT", help="only carts of users whose ids begin with this"
    )


def _list(stub: Stub, arguments: argparse.Namespace) -> Iterator[Message]:
    with arguments_in_range():
        states = [State.Value(f"STATE_{name.upper()}") for name in arguments.state]
        request = pb.CartAdminServiceListCartsRequest(states=states)
        request.user_prefix, request.sku = arguments.user_prefix, arguments.sku
        request.min_age.FromMicroseconds(arguments.min_age)
    return fetch_pages(stub.ListCarts, request, arguments.limit)


def _show_table(carts: Iterable[Message]) -> None:
    say(*to_table([HEADER, *map(_row, carts)]))


def _row(cart: Any) -> Sequence[str]:
    return (
        cart.name,
        show_word(State, cart.state),
        str(cart.item_count),
        str(cart.total_quantity),
        "yes" if cart.reconciling else NOTHING,
        show_age(cart.create_time),
        show_age(cart.update_time),
        show_moment(cart.expire_time) if cart.HasField("expire_time") else NOTHING,
    )
