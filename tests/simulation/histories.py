"""Linearizability by revision: replay the acknowledged operations of a cart in the order of their revisions."""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from typing import Any

from cart_grpc.names import item_id_of
from tests.simulation.operations import CallerOperation

_ALWAYS_CHANGE = {"AddItem", "BatchAddItems", "RemoveItem", "DeleteCart"}


class HistoryChecker:
    """The operations on one cart. `etags` has all etag revisions of the cart, `expired` those at which it expired."""

    def __init__(
        self, cart: str, etags: Collection[int], expired: Collection[int], report_violation: Callable[[str], None]
    ) -> None:
        self._cart = cart
        self._etags = set(etags)
        self._expired = set(expired)
        self._report_violation = report_violation

    def check(self, operations: list[CallerOperation], found: Mapping[str, int]) -> None:
        """Check `operations` against `found`, the cart's quantities at the end by item id."""
        by_revision: defaultdict[int, list[CallerOperation]] = defaultdict(list)
        for operation in operations:
            by_revision[_etag_revision(operation)].append(operation)
        for revision in self._etags - by_revision.keys() - self._expired:
            self._report_violation(f"{self._cart}: no operation made revision {revision}")
        contents: dict[str, int] = {}
        for revision in sorted(by_revision.keys() | self._expired):
            if revision in self._expired:
                contents = {}
            contents = self._fold(revision, contents, by_revision.get(revision, []))
        if found != contents:
            self._report_violation(f"{self._cart} holds {found}, but its operations make {contents}")
        self._check_order(operations)

    def _fold(self, revision: int, before: dict[str, int], group: list[CallerOperation]) -> dict[str, int]:
        """The contents after the operations that were answered with one etag revision.

        Exactly one of them changed the cart; the others changed nothing.
        """
        if not group:
            return before
        for first in group:
            after = _apply(before, first)
            if all(
                _apply(after, other) == after and other.method not in _ALWAYS_CHANGE
                for other in group
                if other is not first
            ):
                for operation in group:
                    if not _agrees(operation, after):
                        self._report_violation(
                            f"{self._cart}: operation {operation.number} got {operation.reply}, not {after}"
                        )
                return after
        self._report_violation(
            f"{self._cart}: no single operation of {[one.number for one in group]} made revision {revision}"
        )
        return before

    def _check_order(self, operations: list[CallerOperation]) -> None:
        """Real-time order: an operation comes after all operations that were acknowledged before it began."""
        highest = 0
        ends = sorted((operation.returned, _etag_revision(operation)) for operation in operations)
        index = 0
        for operation in sorted(operations, key=lambda one: one.invoked):
            while index < len(ends) and ends[index][0] < operation.invoked:
                highest = max(highest, ends[index][1])
                index += 1
            if _etag_revision(operation) < highest:
                self._report_violation(
                    f"{self._cart}: operation {operation.number} comes before {highest}, which ended before it began"
                )


def revision_of(operation: CallerOperation) -> int:
    reply: Any = operation.reply
    return int(reply.cart.revision if "cart" in reply.DESCRIPTOR.fields_by_name else reply.revision)


def _etag_revision(operation: CallerOperation) -> int:
    return int(etag_of(operation.reply).strip('"').rpartition("-")[2], 16)


def etag_of(reply: Any) -> str:
    return str(reply.cart.etag if "cart" in reply.DESCRIPTOR.fields_by_name else reply.etag)


def _apply(contents: Mapping[str, int], operation: CallerOperation) -> dict[str, int]:
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
        case "ReplaceItems":
            after.clear()
            for item in request.items:
                item_id = item_id_of(item.sku, item.options)
                after[item_id] = after.get(item_id, 0) + item.quantity
        case "MergeCarts":
            # What passes depends on another cart.
            reply: Any = operation.reply
            after = {_item_id(item.name): item.quantity for item in reply.cart.items}
    return after


def _agrees(operation: CallerOperation, contents: Mapping[str, int]) -> bool:
    """Whether the reply shows the quantities of `contents`."""
    reply: Any = operation.reply
    if operation.method in ("MergeCarts", "ReplaceItems"):
        return {_item_id(item.name): item.quantity for item in reply.cart.items} == contents
    items = [reply.item] if operation.method in ("AddItem", "UpdateItem") else getattr(reply, "items", [])
    return all(contents.get(_item_id(item.name)) == item.quantity for item in items)


def _item_id(name: str) -> str:
    return name.rpartition("/")[2]
