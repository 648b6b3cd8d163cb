"""What a command is: a write that shares its transaction with others.

A command says what it must read, and is then a function of it. It may share its transaction with others, and may be
run again from the start: it touches nothing but the unit of work that it is given.
"""

from typing import Protocol, TypeVar

from cart_grpc.carts.calls import NewId
from cart_grpc.commands.unit_of_work import ReadSet, UnitOfWork

R_co = TypeVar("R_co", covariant=True)


class Command(Protocol[R_co]):
    """A write that is folded into a batch, and gets its own answer or refusal."""

    def add_reads(self, reads: ReadSet) -> None:
        """Add what this command must see to `needs`."""
        ...

    def run(self, working: UnitOfWork, now: int, new_id: NewId) -> R_co:
        """Change `working` and return the answer, or raise and leave it as it was."""
        ...
