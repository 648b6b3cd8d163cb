"""What callers were told of one cart, put in the order of its revisions, and done again."""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from typing import Any

from cart_grpc.names import item_id_of
from tests.simulation.operations import Operation

_ALWAYS = {"AddItem", "BatchAddItems", "RemoveItem", "DeleteCart"}


class History:
    """`etags` are all revisions at which somebody changed the cart, `expired` those at which it ended by itself."""

    def __init__(
        self, cart: str, etags: Collection[int], expired: Collection[int], violate: Callable[[str], None]
    ) -> None:
        self._cart = cart
        self._etags = set(etags)
        self._expired = set(expired)
        self._violate = violate

    def check(self, operations: list[Operation], found: Mapping[str, int]) -> None:
        """`found` is what the cart holds in the end."""
        by_revision: defaultdict[int, list[Operation]] = defaultdict(list)
        for operation in operations:
            by_revision[_etag_revision(operation)].append(operation)
        for revision in self._etags - by_revision.keys() - self._expired:
            self._violate(f"{self._cart}: revision {revision} was made by nobody")
        contents: dict[str, int] = {}
        for revision in sorted(by_revision.keys() | self._expired):
            if revision in self._expired:
                contents = {}
            contents = self._fold(revision, contents, by_revision.get(revision, []))
        if found != contents:
            self._violate(f"{self._cart} holds {found}, and its operations make {contents}")
        self._check_order(operations)

    def _fold(self, revision: int, before: dict[str, int], group: list[Operation]) -> dict[str, int]:
        """The contents after all operations that were answered with one etag: one changed the cart, none or more did
        not.
        """
        if not group:
            return before
        for first in group:
            after = _apply(before, first)
            if all(
                _apply(after, other) == after and other.method not in _ALWAYS for other in group if other is not first
            ):
                for operation in group:
                    if not _agrees(operation, after):
                        self._violate(
                            f"{self._cart}: operation {operation.number} was answered {operation.reply}, not {after}"
                        )
                return after
        self._violate(f"{self._cart}: revision {revision} was made by {[one.number for one in group]}")
        return before

    def _check_order(self, operations: list[Operation]) -> None:
        """What was acknowledged before another operation was begun comes before it."""
        highest = 0
        ends = sorted((operation.returned, _etag_revision(operation)) for operation in operations)
        index = 0
        for operation in sorted(operations, key=lambda one: one.invoked):
            while index < len(ends) and ends[index][0] < operation.invoked:
                highest = max(highest, ends[index][1])
                index += 1
            if _etag_revision(operation) < highest:
                self._violate(
                    f"{self._cart}: operation {operation.number} comes before {highest}, which was over before it"
                )


def revision_of(operation: Operation) -> int:
    reply: Any = operation.reply
    return int(reply.cart.revision if "cart" in reply.DESCRIPTOR.fields_by_name else reply.revision)


def _etag_revision(operation: Operation) -> int:
    return int(etag_of(operation.reply).strip('"').rpartition("-")[2], 16)


def etag_of(reply: Any) -> str:
    return str(reply.cart.etag if "cart" in reply.DESCRIPTOR.fields_by_name else reply.etag)


def _apply(contents: Mapping[str, int], operation: Operation) -> dict[str, int]:
    after = dict(contents)
    request: Any = operation.request
    match operation.method:
        case "AddItem" | "BatchAddItems":
            additions = [request] if operation.method == "AddItem" else request.requests
            for addition in additions:
                item_id = item_id_of(addition.item.sku, addition.item.options)
                after[item_id] = after.get(item_id, 0) + addition.item.quantity
        case "UpdateItem":
            after[_item_id(request.item.name)] = request.item.quantity
        case "RemoveItem":
            after.pop(_item_id(request.name), None)
        case "ClearCart" | "DeleteCart":
            after.clear()
    return after


def _agrees(operation: Operation, contents: Mapping[str, int]) -> bool:
    """Whether the reply tells the quantities that there are."""
    reply: Any = operation.reply
    items = [reply.item] if operation.method in ("AddItem", "UpdateItem") else getattr(reply, "items", [])
    return all(contents.get(_item_id(item.name)) == item.quantity for item in items)


def _item_id(name: str) -> str:
    return name.rpartition("/")[2]
