"""The bounds on time and on the number of calls: the bound itself passes, anything above it is reported."""

from dataclasses import replace

import pytest

from cart_grpc.protocol.reservation import Observed, Reservation
from tests.carts.examples import a_held, a_hold
from tests.invariants.history import Delivery, RowVersion
from tests.invariants.pace import check_backlog, check_calls, check_ends, check_probes

SECOND = 1_000_000
HEALTHY, BOUND = 100 * SECOND, 10 * SECOND
PENDING = a_hold()


def _settled(row: Reservation) -> Reservation:
    return row._replace(state=Observed.HELD, observed_revision=row.revision)


def _again(row: Reservation, *, by_caller: bool) -> Reservation:
    raised = row.revision + 1
    return row._replace(revision=raised, intent_revision=raised if by_caller else row.intent_revision)


def test_settling_within_the_bound_passes() -> None:
    written = [RowVersion(0, PENDING), RowVersion(HEALTHY + BOUND, _settled(PENDING))]
    assert check_ends(written, HEALTHY, BOUND, HEALTHY + BOUND) == []


def test_settling_after_the_bound_is_reported() -> None:
    written = [RowVersion(0, PENDING), RowVersion(HEALTHY + BOUND + 1, _settled(PENDING))]
    assert len(check_ends(written, HEALTHY, BOUND, HEALTHY + BOUND + 1)) == 1


def test_a_later_intent_has_its_own_bound() -> None:
    later = HEALTHY + 50 * SECOND
    written = [RowVersion(later, PENDING), RowVersion(later + BOUND, _settled(PENDING))]
    assert check_ends(written, HEALTHY, BOUND, later + BOUND) == []


def test_a_row_that_never_settles_is_reported_after_the_bound() -> None:
    written = [RowVersion(HEALTHY, PENDING)]
    assert check_ends(written, HEALTHY, BOUND, HEALTHY + BOUND) == []
    assert len(check_ends(written, HEALTHY, BOUND, HEALTHY + BOUND + 1)) == 1


@pytest.mark.parametrize(("by_caller", "late"), [(True, 0), (False, 1)])
def test_a_new_intent_starts_a_new_wait_unless_the_reconciler_raised_it(by_caller: bool, late: int) -> None:
    again = _again(PENDING, by_caller=by_caller)
    if not by_caller:
        again = again._replace(intent_revision=again.revision, seal_reason="NOT_TODAY")
    written = [
        RowVersion(HEALTHY, PENDING),
        RowVersion(HEALTHY + BOUND // 2, again),
        RowVersion(HEALTHY + BOUND + BOUND // 2, _settled(again)),
    ]
    assert len(check_ends(written, HEALTHY, BOUND, HEALTHY + 2 * BOUND)) == late


def test_a_renewal_has_a_bound_too() -> None:
    held = a_held()
    renewal = _again(held, by_caller=False)
    written = [
        RowVersion(HEALTHY, held),
        RowVersion(HEALTHY + SECOND, renewal),
        RowVersion(HEALTHY + 2 * BOUND, _settled(renewal)),
    ]
    assert len(check_ends(written, HEALTHY, BOUND, HEALTHY + 2 * BOUND)) == 1


def _deliveries(count: int, revisions: int, replica: str = "one", interval: int = SECOND) -> list[Delivery]:
    return [Delivery(number * interval, "r-1", number % revisions, replica) for number in range(count)]


def test_five_percent_of_the_calls_may_be_repeated() -> None:
    assert check_calls(_deliveries(105, 100)) == []
    assert len(check_calls(_deliveries(106, 100))) == 1


def test_revisions_of_two_reservations_are_counted_separately() -> None:
    other = [replace(one, reservation_id="r-2") for one in _deliveries(100, 100)]
    assert check_calls([*_deliveries(100, 100), *other]) == []


def test_a_backlog_costs_at_most_a_fifth_more_calls_than_revisions() -> None:
    assert check_backlog(_deliveries(120, 100), 100) == []
    assert len(check_backlog(_deliveries(121, 100), 100)) == 1


def test_each_replica_may_probe_once_a_second() -> None:
    assert check_probes([*_deliveries(60, 1), *_deliveries(60, 1, "two")]) == []


@pytest.mark.parametrize("interval", [0, SECOND // 2, SECOND * 9 // 10])
def test_a_replica_that_probes_more_often_is_reported(interval: int) -> None:
    (violation,) = check_probes([*_deliveries(60, 1), *_deliveries(60, 1, "two", interval)])
    assert violation.startswith("two")


def test_two_probes_at_once_are_reported() -> None:
    deliveries = _deliveries(60, 1)
    deliveries.insert(30, deliveries[30])
    assert len(check_probes(deliveries)) == 1
