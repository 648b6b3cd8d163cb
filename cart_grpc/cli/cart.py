"""The commands for people and scripts: `cart-grpc cart show | add | set | remove | clear | watch | merge | …`.

They are callers like any other: each uses the client library, and needs only the extra `cli`.
"""

import argparse
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from cartgrpc.v1 import cart_pb2
from google.protobuf import json_format
from google.protobuf.message import Message
from rich.console import Console
from rich.live import Live

from cart_grpc.arguments import duration
from cart_grpc.cli import cart_tables as tables
from cart_grpc.cli.cart_arguments import amount, amount_or_none, pair
from cart_grpc.cli.cart_connection import ADDRESS_VARIABLE, add_options, connect
from cart_grpc.cli.command_groups import Commands
from cart_grpc.client import UNSET, CartError, DeadlineExceeded, SyncCart, SyncCartClient, Unavailable
from cart_grpc.terminal import complain, say
from cart_grpc.tls.client import NOBODY_LISTENS, explain
from cart_grpc.tls.reloaded_files import FileError
from cart_grpc.units import US_PER_SECOND

_CART_HINT: Final = "USER, USER/CART or users/USER/carts/CART; USER alone means the cart `default`"
# The answer of a command, and a function that prints it for people.
Answer = tuple[Message, Callable[[], None]]


def add_commands(commands: Commands, descriptions: Mapping[str, str]) -> None:
    """Add the command `cart`."""
    cart = commands.add_parser("cart", help=descriptions["cart"], description=descriptions["cart"])
    actions = cart.add_subparsers(metavar="COMMAND", required=True)
    _add_readers(actions)
    _add_changes(actions)
    checkout = actions.add_parser("checkout", help="check a cart out", description="Sell a cart.")
    _add_checkout(checkout.add_subparsers(metavar="COMMAND", required=True))


def _add_readers(actions: Commands) -> None:
    _add(actions, "show", _show, "show a cart and its reservations").add_argument("cart", help=_CART_HINT)
    _add(actions, "watch", _watch, "show a cart and each change of it, until it ends").add_argument(
        "cart", help=_CART_HINT
    )
    listing = _add(actions, "list", _list, "list the carts of a user")
    listing.add_argument("user")
    listing.add_argument("--filter", default="", help="such as `state = ACTIVE`")


def _add_changes(actions: Commands) -> None:
    adding = _add_change(actions, "add", _add_item, "add units of an item to a cart")
    adding.add_argument("sku")
    adding.add_argument("quantity", nargs="?", type=int, default=1, help="units to add; default: %(default)s")
    _add_options(adding)
    adding.add_argument("--price", type=amount, metavar="AMOUNT", help="the price of one unit, such as 12.34EUR")
    adding.add_argument(
        "--label", action="append", default=[], type=pair, metavar="KEY=VALUE", help="of the item; repeatable"
    )
    setting = _add_change(actions, "set", _set_item, "set the quantity or the price of an item")
    setting.add_argument("sku")
    _add_options(setting)
    setting.add_argument("--quantity", type=int, default=UNSET, metavar="N")
    setting.add_argument("--price", type=amount_or_none, default=UNSET, metavar="AMOUNT", help="12.34EUR, or none")
    removing = _add_change(actions, "remove", _remove_item, "remove an item from a cart")
    removing.add_argument("sku")
    _add_options(removing)
    _add_change(actions, "clear", _clear, "remove all items from a cart")
    merging = _add_change(actions, "merge", _merge, "move the items of another cart into a cart")
    merging.add_argument("source", help="the cart that loses its items, in the same form")


def _add_checkout(actions: Commands) -> None:
    beginning = _add_change(actions, "begin", _begin, "freeze a cart, so that it can be paid for")
    beginning.add_argument(
        "--window", type=duration, metavar="TIME", help="the time that the customer has to pay, such as 15m"
    )
    beginning.add_argument("--expect", type=amount, metavar="AMOUNT", help="fail if the cart has another subtotal")
    hint = "users/USER/checkouts/ID; or a cart, for its checkout"
    completing = _add_change(actions, "complete", _complete, "sell the items: the customer has paid", hint)
    completing.add_argument("order", help="the reference of the order")
    _add_change(actions, "cancel", _cancel, "end a checkout that is OPEN or FAILED", hint)
    _add(actions, "show", _show_checkout, "show a checkout and its items").add_argument("cart", help=hint)
    listing = _add(actions, "list", _list_checkouts, "list the checkouts of a user")
    listing.add_argument("user")
    listing.add_argument("--filter", default="", help='such as `state = FAILED` or `order_reference = "A-17"`')


def _add(actions: Commands, name: str, run: Callable[..., None], description: str) -> argparse.ArgumentParser:
    command = actions.add_parser(name, help=description, description=description)
    add_options(command)
    command.add_argument("--json", action="store_true", help="print one JSON object per line")
    command.set_defaults(start=_start, run=run)
    return command


def _add_change(
    actions: Commands, name: str, run: Callable[..., Answer], description: str, hint: str = _CART_HINT
) -> argparse.ArgumentParser:
    """Add a command that changes something: its answer is one message."""

    def answer(client: SyncCartClient, arguments: argparse.Namespace) -> None:
        message, show = run(client, arguments)
        _print_json(message) if arguments.json else show()

    command = _add(actions, name, answer, description)
    command.add_argument("cart", help=hint)
    command.add_argument(
        "--wait", type=duration, default="0s", metavar="TIME", help="wait so long for the Reservation API"
    )
    command.add_argument("--etag", default="", help="fail if the cart or checkout has another etag")
    command.add_argument(
        "--request-id", default="", metavar="ID", help="makes the call safe to repeat with the same ID"
    )
    return command


def _add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--option",
        action="append",
        default=[],
        type=pair,
        metavar="KEY=VALUE",
        help="of the item, such as color=red; repeatable",
    )


def _start(arguments: argparse.Namespace) -> int:
    """Run a command. Returns 0; 1 if the server refused a call or did not answer; 2 for wrong use."""
    try:
        with connect(arguments) as client:
            arguments.run(client, arguments)
    except (FileError, ValueError) as error:
        complain(error)
        return 2
    except CartError as error:
        complain(_explanation(error, arguments))
        if isinstance(error, Unavailable | DeadlineExceeded) and error.request_id:
            complain(f"the change may have been made; repeat the command with --request-id {error.request_id}")
        return 1
    return 0


def _explanation(error: CartError, arguments: argparse.Namespace) -> str:
    """The error as a sentence that the reader of a terminal can act on."""
    if isinstance(error, Unavailable | DeadlineExceeded) and not error.reason:
        # An attempt that ran out of time says nothing about the connection. The one before it may.
        cause = error.__cause__ if isinstance(error.__cause__, Unavailable) else error
        known = explain(cause.message)
        if known not in (cause.message, NOBODY_LISTENS):
            return f"no connection to {arguments.address}: {known}"
        detail = "" if known == NOBODY_LISTENS else f" ({known})"
        return (
            f"no server answers at {arguments.address}{detail}; start one with `cart-grpc dev` or `cart-grpc serve`, "
            f"or choose another one with --address or {ADDRESS_VARIABLE}, and --tls if it uses TLS"
        )
    if error.reason == "ITEM_NOT_FOUND":
        item = cart_pb2.Item(sku=arguments.sku, options=dict(arguments.option))
        return f"{arguments.cart} has no item {tables.item_text(item)}"
    return f"{arguments.address}: {error}"


def _mutation(arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments of every call that changes something."""
    wait = arguments.wait / US_PER_SECOND
    return {"wait": wait, "etag": arguments.etag, "request_id": arguments.request_id}


def _cart(client: SyncCartClient, text: str) -> SyncCart:
    """The cart that `text` names. Raises ValueError."""
    if text.startswith("users/"):
        return client.cart_by_name(text)
    user, _, cart = text.partition("/")
    return client.cart(user, cart or "default")


def _show(client: SyncCartClient, arguments: argparse.Namespace) -> None:
    cart = _cart(client, arguments.cart).get()
    _print_json(cart) if arguments.json else tables.show(tables.cart_view(cart))


def _watch(client: SyncCartClient, arguments: argparse.Namespace) -> None:
    states = _cart(client, arguments.cart).watch()
    console = Console()
    if arguments.json or not console.is_terminal:
        for cart in states:
            _print_json(cart) if arguments.json else tables.show(tables.cart_view(cart))
        return
    with Live(console=console, auto_refresh=False) as live:
        for cart in states:
            live.update(tables.cart_view(cart), refresh=True)


def _list(client: SyncCartClient, arguments: argparse.Namespace) -> None:
    _print_all(arguments, client.list_carts(arguments.user, filter=arguments.filter), tables.carts_table)


def _list_checkouts(client: SyncCartClient, arguments: argparse.Namespace) -> None:
    _print_all(arguments, client.list_checkouts(arguments.user, filter=arguments.filter), tables.checkouts_table)


def _add_item(client: SyncCartClient, arguments: argparse.Namespace) -> Answer:
    response = _cart(client, arguments.cart).add(
        arguments.sku,
        arguments.quantity,
        options=dict(arguments.option),
        unit_price=arguments.price,
        labels=dict(arguments.label) or None,
        **_mutation(arguments),
    )
    return response, lambda: _show_item(response)


def _set_item(client: SyncCartClient, arguments: argparse.Namespace) -> Answer:
    cart = _cart(client, arguments.cart)
    response = cart.set(
        _item(cart, arguments), quantity=arguments.quantity, unit_price=arguments.price, **_mutation(arguments)
    )
    return response, lambda: _show_item(response)


def _remove_item(client: SyncCartClient, arguments: argparse.Namespace) -> Answer:
    cart = _cart(client, arguments.cart)
    response = cart.remove(_item(cart, arguments), **_mutation(arguments))
    return response, lambda: say(f"removed {response.item.quantity} of {tables.item_text(response.item)}")


def _item(cart: SyncCart, arguments: argparse.Namespace) -> str:
    return cart.item_name(arguments.sku, dict(arguments.option))


def _clear(client: SyncCartClient, arguments: argparse.Namespace) -> Answer:
    response = _cart(client, arguments.cart).clear(**_mutation(arguments))
    return response, lambda: say(f"removed {tables.count(len(response.removed_items), 'item')}")


def _merge(client: SyncCartClient, arguments: argparse.Namespace) -> Answer:
    source = _cart(client, arguments.source).name
    response = _cart(client, arguments.cart).merge(source, **_mutation(arguments))

    def show() -> None:
        tables.show(tables.cart_view(response.cart))
        if response.adjustments:
            tables.show(tables.adjustments_table(response.adjustments))

    return response, show


def _begin(client: SyncCartClient, arguments: argparse.Namespace) -> Answer:
    window = None if arguments.window is None else arguments.window / US_PER_SECOND
    cart = _cart(client, arguments.cart)
    return _checkout_answer(
        cart.begin_checkout(window=window, expected_subtotal=arguments.expect, **_mutation(arguments))
    )


def _complete(client: SyncCartClient, arguments: argparse.Namespace) -> Answer:
    name = _checkout_name(client, arguments.cart)
    return _checkout_answer(client.complete_checkout(name, arguments.order, **_mutation(arguments)))


def _cancel(client: SyncCartClient, arguments: argparse.Namespace) -> Answer:
    return _checkout_answer(client.cancel_checkout(_checkout_name(client, arguments.cart), **_mutation(arguments)))


def _show_checkout(client: SyncCartClient, arguments: argparse.Namespace) -> None:
    checkout = client.get_checkout(_checkout_name(client, arguments.cart))
    _print_json(checkout) if arguments.json else tables.show(tables.checkout_view(checkout))


def _checkout_answer(checkout: cart_pb2.Checkout) -> Answer:
    return checkout, lambda: tables.show(tables.checkout_view(checkout))


def _checkout_name(client: SyncCartClient, text: str) -> str:
    """The name of the checkout that `text` names: a checkout, or a cart that has one. Raises ValueError."""
    if "/checkouts/" in text:
        return text
    cart = _cart(client, text).get()
    if not cart.checkout:
        raise ValueError(f"{cart.name} has no checkout")
    return cart.checkout


def _show_item(response: Any) -> None:
    tables.show(tables.items_table([response.item]))


def _print_all(
    arguments: argparse.Namespace, messages: Iterable[Message], to_table: Callable[[Iterable[Any]], Any]
) -> None:
    if not arguments.json:
        tables.show(to_table(messages))
        return
    for message in messages:
        _print_json(message)


def _print_json(message: Message) -> None:
    say(json_format.MessageToJson(message, indent=None, preserving_proto_field_name=True, ensure_ascii=False))
