"""The interface of a command: a write that shares its transaction with other commands.

A command names what it must read and is then a function of it. The store may run it together with others, or again from
the start, so it changes nothing but the unit of work that it gets.
"""

from typing import Protocol, TypeVar

from cart_grpc.carts.calls import NewId
from cart_grpc.commands.unit_of_work import ReadSet, UnitOfWork

R_co = TypeVar("R_co", covariant=True)


class Command(Protocol[R_co]):
    """A write that a batch folds with others, and that gets its own answer or refusal."""

    def add_reads(self, reads: ReadSet, /) -> None:
        """Add to `reads` what this command must see."""
        ...

    def run(self, unit: UnitOfWork, now: int, new_id: NewId, /) -> R_co:
        """Change `unit` and return the answer, or raise and leave `unit` as it was. `now` is in microseconds."""
        ...
