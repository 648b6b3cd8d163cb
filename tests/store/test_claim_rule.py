"""The claim statement and the pure claim rule do the same to every row, on both databases."""

import itertools
from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, select

from cart_grpc.commands.direct import Claim
from cart_grpc.protocol.lanes import LANES, Lane, lane_of
from cart_grpc.protocol.reservation import Disposition, Observed, Reservation
from cart_grpc.protocol.transitions import claim
from cart_grpc.store import schema
from cart_grpc.store.engine import Engine
from cart_grpc.store.queries import WriteQueries
from cart_grpc.store.rows import reservation_row, to_reservation
from tests.carts.examples import NOW, SECOND, a_hold

# Of statements and of one schema.
pytestmark = pytest.mark.one_shard

LEASE = 15 * SECOND
PAST, FUTURE = NOW - SECOND, NOW + SECOND
TIMES = (None, PAST, NOW, FUTURE)


def every_row() -> Iterator[Reservation]:
    """Rows with every combination of the fields that a claim reads, also ones that the rules never produce."""
    numbers = itertools.count()
    intents = [(disposition, "") for disposition in Disposition] + [(Disposition.HOLD, "of a checkout")]
    for (disposition, checkout_id), due_time, expire_time, lease, (observed, intent), attempt in itertools.product(
        intents, TIMES, TIMES, (None, PAST, FUTURE), ((3, 3), (3, 2), (2, 2), (0, 3)), (0, 4)
    ):
        yield a_hold(
            reservation_id=f"r-{next(numbers)}",
            disposition=disposition,
            checkout_id=checkout_id,
            due_time=due_time,
            expire_time=expire_time,
            lease_expire_time=lease,
            revision=3,
            observed_revision=observed,
            intent_revision=intent,
            attempt_count=attempt,
            lease_epoch=attempt + 1,
        )


def every_state() -> Iterator[Reservation]:
    """Due and settled rows with every combination of fields that a claim must not depend on."""
    for state, waiting, refused in itertools.product(Observed, (False, True), ("", "NOT_FOUND")):
        name = f"r-{state.name}-{waiting}-{refused}"
        row = a_hold(reservation_id=name, state=state, waiting=waiting, seal_reason=refused, observed_revision=1)
        yield row._replace(granted_quantity=2, expire_time=FUTURE, last_error="UNAVAILABLE: gone", finish_time=PAST)


@pytest.mark.parametrize("lane", LANES)
async def test_the_claim_statement_changes_every_row_as_the_claim_rule_does(engine: Engine, lane: Lane) -> None:
    before = {row.reservation_id: row for row in itertools.chain(every_row(), every_state())}
    queries = WriteQueries(engine.dialect, lock_users=engine.locks_users)

    def work(connection: Connection) -> tuple[list[Reservation], list[Reservation]]:
        queries.write(connection, {"reservations": [reservation_row(row) for row in before.values()]})
        claimed = queries.claim(connection, Claim(lane, len(before), LEASE), NOW)
        return claimed, [to_reservation(row) for row in connection.execute(select(schema.reservations))]

    claimed, after = await engine.transact(work)
    ruled = {name: claim(row, NOW, NOW + LEASE) for name, row in before.items() if lane_of(row) == lane}
    assert {row.reservation_id: row for row in after} == before | ruled
    assert {row.reservation_id: row for row in claimed} == {
        name: row for name, row in ruled.items() if row != before[name]
    }
