"""A whole run, and the verdict on it."""

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
    """All that is known of a run that came to rest: every call answered or repeated until it was, no message left.

    `dump`, `levels` (the stock at the end, by sku) and `now` (the database's time) were read then; the Reservation API
    had ended the holds that ran out. `stock` is how many pieces there are of each sku. `claims` and `written` are empty
    where nobody watched the rows.
    """

    calls: Sequence[Call]
    effects: Sequence[ApiEffect]
    dump: Dump
    now: int
    stock: Mapping[str, int]
    levels: Mapping[str, Levels]
    claims: Sequence[ClaimEvent] = ()
    written: Sequence[RowVersion] = ()


def check_run(run: Run, may_refuse: Callable[[str, str], bool] = has_reason) -> list[str]:
    """Everything that must hold of any run, whatever went wrong in it; `may_refuse` as in `check_granted`.

    What depends on when things went wrong is in `pace`.
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
        *check_granted(run.effects, run.dump, run.now, may_refuse),
        *check_stock(run.effects, run.stock, run.levels),
        *check_settled(run.dump),
        *check_rising(run.written),
        *check_claims(run.claims),
    ]
