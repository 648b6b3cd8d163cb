"""Carts and checkouts as tables for people, with coloured states. Needs rich."""

from collections.abc import Iterable, Mapping
from datetime import UTC
from typing import Any, Final

from cartgrpc.v1 import cart_pb2
from cartgrpc.v1 import cart_service_pb2 as pb
from rich.console import Console, Group, JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

from cart_grpc.client import money
from cart_grpc.terminal import escape, write

_NOTHING: Final = "-"
_PLAIN_WIDTH: Final = 1_000
_STYLES: Final[Mapping[str, str]] = {
    "RESERVED": "green",
    "COMMITTED": "bold green",
    "PENDING": "yellow",
    "UNCERTAIN": "yellow",
    "COMMITTING": "yellow",
    "REJECTED": "red",
    "EXPIRED": "red",
    "ACTIVE": "green",
    "CHECKING_OUT": "yellow",
    "OPEN": "yellow",
    "COMPLETING": "yellow",
    "COMPLETED": "bold green",
    "FAILED": "bold red",
}


def show(*shown: RenderableType) -> None:
    """Print tables and texts: in colours on a terminal, as plain text elsewhere. Raises SystemExit as `write` does."""
    console = Console()
    if not console.is_terminal:
        # Programs read the output line by line, so no line may be broken.
        console.width = _PLAIN_WIDTH
    with console.capture() as captured:
        for each in shown:
            console.print(each)
    text = captured.get()
    write(text if console.is_terminal else "".join(f"{line.rstrip()}\n" for line in text.splitlines()))


def cart_view(cart: cart_pb2.Cart) -> RenderableType:
    """A cart with its items."""
    title = Text.assemble((escape(cart.name), "bold"), "  ", _state(cart_pb2.Cart.State.Name(cart.state)))
    if cart.merged_into:
        title.append(f"  into {escape(cart.merged_into)}")
    if cart.checkout:
        title.append(f"  {escape(cart.checkout)}")
    total = [count(cart.item_count, "item"), count(cart.total_quantity, "unit")]
    if cart.HasField("subtotal"):
        total.append(f"subtotal {_show_money(cart.subtotal)}")
    return Group(title, *([items_table(cart.items)] if cart.items else []), Text(", ".join(total)))


def items_table(items: Iterable[cart_pb2.Item]) -> Table:
    """Items with their reservations."""
    table = _table("ITEM", ">QUANTITY", ">UNIT PRICE", "RESERVATION", ">HELD", "UNTIL", "NOTE")
    for item in items:
        seen = item.reservation
        table.add_row(
            Text(item_text(item)),
            str(item.quantity),
            _show_money(item.unit_price) if item.HasField("unit_price") else _NOTHING,
            _state(cart_pb2.Reservation.State.Name(seen.state)),
            str(seen.reserved_quantity),
            _moment(seen) or _NOTHING,
            Text(escape(seen.message or seen.reason)),
        )
    return table


def carts_table(carts: Iterable[cart_pb2.Cart]) -> Table:
    """Carts without their items."""
    table = _table("CART", "STATE", ">ITEMS", ">UNITS", ">SUBTOTAL", "CHANGED")
    for cart in carts:
        subtotal = _show_money(cart.subtotal) if cart.HasField("subtotal") else _NOTHING
        state = _state(cart_pb2.Cart.State.Name(cart.state))
        changed = _time(cart.update_time)
        table.add_row(Text(escape(cart.name)), state, str(cart.item_count), str(cart.total_quantity), subtotal, changed)
    return table


def checkout_view(checkout: cart_pb2.Checkout) -> RenderableType:
    """A checkout with its items."""
    state = cart_pb2.Checkout.State.Name(checkout.state)
    title = Text.assemble((escape(checkout.name), "bold"), "  ", _state(state))
    if checkout.ready:
        title.append("  ready", "green")
    elif checkout.state == cart_pb2.Checkout.STATE_OPEN:
        title.append("  not ready yet", "yellow")
    facts = [f"of {escape(checkout.cart)}", count(checkout.item_count, "item"), count(checkout.total_quantity, "unit")]
    if checkout.HasField("subtotal"):
        facts.append(f"subtotal {_show_money(checkout.subtotal)}")
    if checkout.order_reference:
        facts.append(f"order {escape(checkout.order_reference)}")
    if checkout.reason:
        facts.append(checkout.reason)
    if checkout.state == cart_pb2.Checkout.STATE_OPEN:
        facts.append(f"until {_time(checkout.expire_time)}")
    items = [items_table(checkout.items)] if checkout.items else []
    return Group(title, *items, Text(", ".join(facts)))


def checkouts_table(checkouts: Iterable[cart_pb2.Checkout]) -> Table:
    """Checkouts without their items."""
    table = _table("CHECKOUT", "STATE", "CART", ">SUBTOTAL", "ORDER", "REASON", "CHANGED")
    for one in checkouts:
        table.add_row(
            Text(escape(one.name)),
            _state(cart_pb2.Checkout.State.Name(one.state)),
            Text(escape(one.cart)),
            _show_money(one.subtotal) if one.HasField("subtotal") else _NOTHING,
            Text(escape(one.order_reference) or _NOTHING),
            one.reason or _NOTHING,
            _time(one.update_time),
        )
    return table


def adjustments_table(adjustments: Iterable[pb.MergeAdjustment]) -> Table:
    """The adjustments of a merge."""
    table = _table("ADJUSTED ITEM", "CHANGE", ">QUANTITY", "LIMIT OR PRICE")
    for one in adjustments:
        lost = _show_money(one.lost_unit_price) if one.HasField("lost_unit_price") else one.quota
        kind = pb.MergeAdjustment.Type.Name(one.type).removeprefix("TYPE_")
        table.add_row(
            Text(item_text(one.source_item)), kind, f"{one.source_item.quantity} -> {one.quantity}", lost or _NOTHING
        )
    return table


def item_text(item: cart_pb2.Item) -> str:
    """An item's sku and options, such as `mug {color=red}`."""
    options = ", ".join(f"{key}={value}" for key, value in sorted(item.options.items()))
    return escape(f"{item.sku} {{{options}}}" if options else item.sku)


def _show_money(amount: cart_pb2.Money) -> str:
    return escape(money.show_money(amount))


def count(number: int, noun: str) -> str:
    """A number and a noun, such as `1 item` or `2 items`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _table(*columns: str) -> Table:
    """A table without lines. A column whose heading begins with > is aligned to the right."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in columns:
        justify: JustifyMethod = "right" if heading.startswith(">") else "left"
        table.add_column(heading.removeprefix(">"), justify=justify, no_wrap=heading != "NOTE")
    return table


def _state(name: str) -> Text:
    word = name.removeprefix("STATE_")
    return Text(word, style=_STYLES.get(word, "dim"))


def _moment(seen: cart_pb2.Reservation) -> str:
    return _time(seen.expire_time) if seen.HasField("expire_time") else ""


def _time(timestamp: Any) -> str:
    """A time in the local time zone, to the second."""
    return f"{timestamp.ToDatetime(UTC).astimezone():%Y-%m-%d %H:%M:%S}"
