"""The interface of a command: a write that shares its transaction with other commands.

A command names the rows that it needs. The store reads these rows into a unit of work, and the command changes that.
To run several commands on one unit of work, one after the other, is to *fold* them. The store may also repeat a whole
batch, so a command changes nothing else.
"""

from typing import Protocol, TypeVar

from cart_grpc.carts.calls import NewId
from cart_grpc.commands.unit_of_work import ReadSet, UnitOfWork

R_co = TypeVar("R_co", covariant=True)


class Command(Protocol[R_co]):
    """A write that is folded with others. Each gets its own answer or refusal."""

    def add_reads(self, reads: ReadSet, /) -> None:
        """Add to `reads` the keys of the rows that this command needs."""
        ...

    def run(self, unit: UnitOfWork, now: int, new_id: NewId, /) -> R_co:
        """Change `unit` and return the answer, or raise and leave `unit` as it was. `now` is in microseconds."""
        ...
