"""Linearizability: the operations of each cart took effect one after the other, in the order of their revisions."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby

from tests.invariants.operations import (
    CHANGES,
    READS,
    Operation,
    apply,
    by_cart,
    removed,
    sets_only_quantity,
    sets_quantity,
    shown,
)


def check_revisions(operations: Iterable[Operation]) -> list[str]:
    """Every cart is linearizable by its revisions. `operations` are all that took effect, expiries included.

    - One change makes one revision.
    - A reply at a revision shows the result of all changes up to it, with the etag of the last change.
    - A change with an expected etag follows the change with that etag.
    - Real time: an operation that was answered before another began has no higher revision.
    """
    return [violation for one in by_cart(operations).values() for violation in _Cart().check(one)]


class _Cart:
    """Applies one cart's operations in order and checks each."""

    def __init__(self) -> None:
        self._quantities: dict[str, int] = {}
        self._last_change = 0

    def check(self, ordered: Sequence[Operation]) -> Iterator[str]:
        sequence: list[list[Operation]] = []
        for _, group in groupby(ordered, key=lambda one: (one.revision, one.hidden)):
            members = list(group)
            before = self._last_change
            change = self._find_change(members)
            others = [one for one in members if one is not change]
            if change is not None:
                sequence.append([change])
                yield from self._check_change(change, before)
            if others:
                sequence.append(others)
            for other in others:
                yield from self._check_unchanged(other, change)
        yield from _check_real_time(sequence)

    def _find_change(self, members: Sequence[Operation]) -> Operation | None:
        """Find the operation that made a revision, among all `members` that were answered with it.

        If several can have made it, prefer one that expected the previous etag, then the earliest one that expected no
        other etag. `_check_unchanged` reports any further member that changes something.
        """
        sure = [one for one in members if one.rpc in CHANGES]
        if sure:
            return sure[0]
        changing = [one for one in members if _must_change(one, self._quantities)]
        fresh = members[0].revision > self._last_change
        able = changing or [one for one in members if fresh and one.etag == one.revision and _may_change(one)]
        ranks = {self._last_change: 0, None: 1}
        return min(able, key=lambda one: (ranks.get(one.expected_etag, 2), one.invoked), default=None)

    def _check_change(self, change: Operation, before: int) -> Iterator[str]:
        if change.rpc == "RemoveItem" and change.request.name not in self._quantities:
            yield f"{change} removed an item that did not exist"
        if change.rpc == "UpdateItem" and change.request.item.name not in self._quantities:
            yield f"{change} updated an item that did not exist"
        if change.expected_etag not in (None, before):
            yield f"{change} expected the etag of {change.expected_etag}, but {before} was the last change"
        had = dict(self._quantities)
        apply(self._quantities, change)
        self._last_change = change.revision
        if change.hidden:
            return
        if change.etag != change.revision:
            yield f"{change} is a change, but was answered with the etag of {change.etag}"
        yield from self._check_shown(change)
        gone = {name: quantity for name, quantity in had.items() if name not in self._quantities}
        yield from _check_removed(change, gone)

    def _check_unchanged(self, other: Operation, change: Operation | None) -> Iterator[str]:
        if other.rpc in CHANGES or _must_change(other, self._quantities):
            made = f"that {change} made" if change else "that no operation made"
            yield f"{other} changed something, but was answered with a revision {made}"
            return
        if other.etag != self._last_change:
            yield f"{other} was answered with the etag of {other.etag}, but {self._last_change} was the last change"
        if other.expected_etag not in (None, self._last_change):
            yield f"{other} expected the etag of {other.expected_etag}, but {self._last_change} was the last change"
        yield from self._check_shown(other)
        yield from _check_removed(other, {})

    def _check_shown(self, operation: Operation) -> Iterator[str]:
        seen = shown(operation)
        if seen is None:
            return
        found, is_whole = seen
        expected: Mapping[str, int | None] = self._quantities
        if not is_whole:
            expected = {name: self._quantities.get(name) for name in found}
        if found != expected:
            yield f"{operation} shows {dict(found)}, but all changes up to it make {dict(expected)}"


def _check_removed(operation: Operation, gone: Mapping[str, int]) -> Iterator[str]:
    listed = removed(operation)
    if listed is not None and listed != gone:
        yield f"{operation} lists {dict(listed)} as removed, but it removed {dict(gone)}"


def _must_change(operation: Operation, quantities: Mapping[str, int]) -> bool:
    if operation.rpc == "ClearCart":
        return bool(quantities)
    if operation.rpc == "ReplaceItems":
        after: dict[str, int] = {}
        apply(after, operation)
        return after != quantities
    if operation.rpc != "UpdateItem" or not sets_quantity(operation.request):
        return False
    item = operation.request.item
    return bool(quantities.get(item.name) != item.quantity)


def _may_change(operation: Operation) -> bool:
    """Whether the operation may have changed something other than a quantity."""
    if operation.rpc in READS or operation.rpc == "ClearCart":
        return False
    return operation.rpc != "UpdateItem" or not sets_only_quantity(operation.request)


def _check_real_time(sequence: Sequence[Sequence[Operation]]) -> Iterator[str]:
    """Walk backwards: no operation may begin after one that follows it was answered."""
    earliest: Operation | None = None
    for members in reversed(sequence):
        for one in members:
            if earliest is not None and one.rpc != "Expire" and earliest.returned < one.invoked:
                yield f"{earliest} was answered before {one} began, but follows it"
        first = min(members, key=lambda one: one.returned)
        if earliest is None or first.returned < earliest.returned:
            earliest = first
