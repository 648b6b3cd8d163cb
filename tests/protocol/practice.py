"""What our side does around the pure rules. Each function may be replaced by a mutant."""

from collections.abc import Iterable, Iterator, Sequence

from cart_grpc.carts.progress import Progress, ProgressState, progress
from cart_grpc.protocol import transitions
from cart_grpc.protocol.reservation import FINAL, Intent, Reservation
from tests.carts.examples import line_of
from tests.protocol.claims import claim
from tests.protocol.worlds import LASTING, TICK, made

# More than was ever issued.
STRIDE = 1 << 32


def shown(row: Reservation, wanted: int) -> Progress:
    """What callers see."""
    return progress(line_of(row, wanted), 0)


def claims(row: Reservation, sent: Iterable[Intent]) -> Iterator[Reservation]:
    """The row as a worker may leave it that wants to send what is due. `sent` is what any had read and sent before."""
    yield claim(row, 0, TICK)


def put_in_again(rows: Sequence[Reservation], quantity: int) -> Sequence[Reservation]:
    """The rows once an item that is over is wanted again: another id, which waits until the older ones are released."""
    return *rows, made(len(rows), quantity, waiting=any(row.releasing for row in rows))


def extend(row: Reservation) -> Reservation:
    """Raise a hold so that it outlasts the window of a checkout."""
    return transitions.hold(row, row.quantity, 0)._replace(ttl_us=LASTING)


def can_complete(row: Reservation, wanted: int) -> bool:
    """Whether the hold is observed that was raised for the checkout."""
    return not row.reconciling and shown(row, wanted).state is ProgressState.RESERVED


def restore(row: Reservation) -> Reservation:
    """The row of a backup before anything is started again: the statement in the README."""
    if row.settled and row.state in FINAL:
        return row
    revision = row.revision + STRIDE
    due_time = None if row.waiting else 0
    return row._replace(revision=revision, intent_revision=revision, reserved_cap=0, due_time=due_time)
