"""The rules of our service outside `cart_grpc.protocol`, as pure functions. Mutants replace these functions."""

from collections.abc import Iterable, Iterator, Sequence

from cart_grpc.carts.model import Checkout
from cart_grpc.carts.progress import Progress, progress
from cart_grpc.protocol import transitions
from cart_grpc.protocol.reservation import FINAL, RELEASED_BY_OPERATOR, Intent, Reservation
from tests.carts.examples import line_of
from tests.protocol.states import TICK, new_row

# A restore adds this to every revision: more than was ever sent.
RESTORE_STRIDE = 1 << 32


def shown(row: Reservation, wanted: int) -> Progress:
    """The progress that callers see."""
    return progress(line_of(row, wanted), 0)


def claims(row: Reservation, sent: Iterable[Intent]) -> Iterator[Reservation]:
    """All results of a claim of `row`. `sent` has the messages sent so far, which mutants use as old reads."""
    yield transitions.claim(row, 0, TICK)


def add_again(rows: Sequence[Reservation], quantity: int) -> Sequence[Reservation]:
    """The rows after a removed item is added again: a new id, which waits until the older ids are released."""
    return *rows, new_row(len(rows), quantity, waiting=any(row.releasing for row in rows))


def accepts_changes(checkout: Checkout | None) -> bool:
    """Whether callers can change the items: not in a checkout."""
    return checkout is None


def release_by_operator(row: Reservation) -> Reservation:
    """The row after an operator released it, as `commands.operator.Release` does. Raises ValueError if it is frozen."""
    return transitions.release(row, 0)._replace(seal_reason=RELEASED_BY_OPERATOR)


def restore(row: Reservation) -> Reservation:
    """A row of a backup, as the restore command changes it before any server starts."""
    if row.settled and row.state in FINAL:
        return row
    revision = row.revision + RESTORE_STRIDE
    due_time = None if row.waiting else 0
    return row._replace(revision=revision, intent_revision=revision, reserved_cap=0, due_time=due_time)
