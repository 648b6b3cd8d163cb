"""The states and bounds of the model of merges."""

from dataclasses import dataclass
from typing import NamedTuple

from cart_grpc.names import CartKey, cart_key, user_key
from cart_grpc.protocol.reservation import Intent
from tests.protocol.states import STOCK

USER, GUEST = cart_key(user_key("user"), "default"), cart_key(user_key("guest"), "default")


@dataclass(frozen=True)
class MergeBounds:
    """The bounds of an exploration. Merges, removals, renewals and second requests may exceed the revisions given here.

    - `quantities`: the initial quantities of the user's and the guest's item; 0 means no item.
    - `changed`: callers change a quantity up to this revision. `removed`: they remove items.
    - `refused`: the API answers with a permanent failure up to this revision.
    - `rows`: how many reservations there are. With a third one, an item is added again.
    - `ticks`: how many times time passes; a hold is renewed after one tick, and ends after two.
    - `most`: the limit of an item's quantity. `rivals`: whether other customers take a piece and return it.
    - `stock`: how many pieces exist.
    - `operators`: they release reservations.
    """

    quantities: tuple[tuple[int, int], ...] = ((1, 1), (2, 1), (1, 2), (0, 1))
    changed: int = 0
    removed: bool = False
    refused: int = 0
    rows: int = 2
    ticks: int = 0
    most: int = 100
    stock: int = STOCK
    rivals: bool = False
    operators: bool = False


class Message(NamedTuple):
    """A message that was sent under a claim. `cart` and `supersedes` are those of the row when it was claimed."""

    cart: CartKey
    supersedes: bool
    intent: Intent


class Received(NamedTuple):
    """An answer on its way, and the message that it answers, as interned numbers."""

    message: int
    outcome: int


class ApiState(NamedTuple):
    """One reservation at the API and in the network: a record, a bit set of messages, and an answer on its way.

    `is_blocked`: the API refused the row's last change of intent, and would not have without the other reservations of
    the same cart.
    """

    record: int
    sent: int = 0
    answer: Received | None = None
    is_blocked: bool = False


class MergeState(NamedTuple):
    """A state of the model. `tables` is an interned number. `elsewhere`: the quantity that other customers have.

    `asked`: how many times the service has asked again by itself since a caller changed the item or time passed.
    """

    tables: int
    ids: tuple[ApiState, ...]
    elsewhere: int = 0
    ticks: int = 0
    asked: int = 0
