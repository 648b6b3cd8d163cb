"""A whole run, and all checks on it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cart_grpc.simulator.stock import Levels
from tests.invariants.callers import check_durable, check_replays
from tests.invariants.claims import check_claims
from tests.invariants.effects import (
    check_decisions,
    check_granted,
    check_no_orphans,
    check_one_live,
    check_stock,
    has_reason,
    owners,
)
from tests.invariants.history import ApiEffect, Call, ClaimEvent, Dump, RowVersion
from tests.invariants.operations import expiries, took_place
from tests.invariants.revisions import check_revisions
from tests.invariants.rows import check_atomic, check_rising, check_settled


@dataclass(frozen=True, slots=True)
class Run:
    """The history of a run that reached quiescence: every call has a known outcome, and no message is in flight.

    `dump`, `levels` (the stock by sku) and `now` (the database's time) were read at the end, after the Reservation API
    had expired its holds. `stock` is the initial stock by sku. `claims` and `written` are empty if the run did not
    record the versions of rows.
    """

    calls: Sequence[Call]
    effects: Sequence[ApiEffect]
    dump: Dump
    now: int
    stock: Mapping[str, int]
    levels: Mapping[str, Levels]
    claims: Sequence[ClaimEvent] = ()
    written: Sequence[RowVersion] = ()


def check_run(run: Run, may_reject: Callable[[str, str], bool] = has_reason) -> list[str]:
    """Check all invariants that hold for every run with any faults. `may_reject` is as in `check_granted`.

    `pace` has the checks that depend on the time of the faults.
    """
    operations = took_place(run.calls, run.dump.replies)
    at_rest = [RowVersion(run.now, cart) for cart in run.dump.carts]
    operations += expiries([*run.written, *at_rest], operations)
    behind, used_twice = owners(operations, run.dump)
    return [
        *check_durable(run.calls, operations, run.dump),
        *check_replays(run.calls, run.dump),
        *check_atomic(operations, run.dump),
        *check_revisions(operations),
        *used_twice,
        *check_decisions(run.effects),
        *check_one_live(run.effects, behind),
        *check_no_orphans(run.effects, behind, run.dump),
        *check_granted(run.effects, run.dump, run.now, may_reject),
        *check_stock(run.effects, run.stock, run.levels),
        *check_settled(run.dump),
        *check_rising(run.written),
        *check_claims(run.claims),
    ]
