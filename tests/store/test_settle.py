"""Settling without reading has the same effect as the full way of recording, on both databases.

The rows and outcomes are all that the protocol's specification reaches. The same records run twice: settled where the
guard permits it, and folded.
"""

import functools
import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
from sqlalchemy import ColumnElement, Connection, FromClause, select

from cart_grpc.carts.model import Cart, CartState, Item
from cart_grpc.commands.record import RecordAll, Recorded, RecordOutcome
from cart_grpc.names import UserKey, cart_key, user_key
from cart_grpc.protocol.attempts import open_attempt
from cart_grpc.protocol.reservation import (
    Answer,
    Decision,
    Disposition,
    NoAnswer,
    Observed,
    Reservation,
    StaleRevision,
)
from cart_grpc.protocol.transitions import (
    commit,
    force_release,
    hold,
    merge_decision,
    record_outcome,
    release,
    retry_now,
)
from cart_grpc.store import schema, settle_statements
from cart_grpc.store.batch import AnyCommand, BatchResult, run_batch
from cart_grpc.store.engine import Engine
from cart_grpc.store.queries import WriteQueries
from cart_grpc.store.rows import CommitMarker, cart_row, item_row, reservation_row
from cart_grpc.store.settle import settle
from tests.carts.examples import SECOND
from tests.protocol import configurations as bounds_of
from tests.protocol.explorer import Explorer
from tests.protocol.items import NO_ANSWER
from tests.protocol.model import CartModel
from tests.protocol.states import TICK, Bounds

# Of statements and of one schema.
pytestmark = pytest.mark.one_shard

LEASE = 5 * TICK
# Before and after the end of the holds that last one tick.
TIMES = (TICK // 2, TICK)


# The item of the row, when the answer is recorded.
AS_INTENDED, ONE_MORE, REMOVED, NO_CART = ITEMS = ("as intended", "one more", "removed", "no cart")


class Case(NamedTuple):
    """A record, the row that it finds, and the change of that row since its claim."""

    since: str
    row: Reservation
    record: RecordOutcome
    item: str = AS_INTENDED


def _older_answer(row: Reservation) -> Reservation:
    return merge_decision(row, Decision("", row.observed_revision + 1, Observed.EXPIRED, 0, None, "LATE"))


def _decided_beyond(row: Reservation) -> Reservation:
    beyond = Decision("", row.revision + 1, Observed.HELD, 1, TICK, "")
    return record_outcome(row, row.lease_epoch, row.revision, StaleRevision(beyond), 0, 0)


NOTHING = "nothing"
# Changes of a claimed row before its answer is recorded.
SINCE: dict[str, Callable[[Reservation], Reservation | None]] = {
    "the lease is extended": lambda row: row._replace(lease_expire_time=LEASE + 1, due_time=LEASE + 1),
    "the quantity is changed": lambda row: hold(row, row.quantity + 1, 0),
    "it takes another one over": lambda row: hold(row, row.quantity, 0)._replace(supersedes=True),
    "the item is removed": lambda row: release(row, 0),
    "it is sold": lambda row: commit(row, 0),
    "the claim is returned": lambda row: row._replace(lease_expire_time=None, due_time=0),
    "the claim is overtaken": lambda row: row._replace(lease_epoch=row.lease_epoch + 1, attempt_count=9),
    "its call gets no answer": lambda row: record_outcome(row, row.lease_epoch, row.revision, NO_ANSWER, 0, SECOND),
    "it is set aside": lambda row: row._replace(lease_expire_time=None, due_time=None, set_aside_reason="poison"),
    "an operator retries it": lambda row: retry_now(row, 0),
    "an operator ends it": lambda row: force_release(row, 0),
    "an attempt is opened": lambda row: open_attempt(row, row, TICK, 0),
    "the clock is set back": lambda row: row._replace(expire_time=row.expire_time and row.expire_time - TICK),
    "a higher revision is decided": _decided_beyond,
    "an older answer comes": _older_answer,
}
HARMLESS = {NOTHING, "the lease is extended"}


def claimed(row: Reservation, revision: int) -> Reservation:
    """`row` under a claim that sends `revision`."""
    return row._replace(
        revision=revision, lease_epoch=3, attempt_count=2, lease_expire_time=LEASE, due_time=LEASE, last_error="LOST: x"
    )


@functools.cache
def reached(*bounds: Bounds) -> Sequence[tuple[Reservation, int, Answer | NoAnswer]]:
    """Each row of the specification with each outcome that it records there, and the revision that was sent."""
    found = {}
    for each in bounds:
        model = CartModel(each)
        Explorer(model).explore()
        for row, (revision, outcome) in model.recorded():
            found[row._replace(reservation_id=""), revision, repr(outcome)] = (row, revision, outcome)
    return list(found.values())


def outcomes(outcome: Answer | NoAnswer) -> Iterator[Answer | NoAnswer]:
    """`outcome`, and what an API that breaks the rules could answer instead."""
    yield outcome
    if isinstance(outcome, Decision) and outcome.state is Observed.HELD:
        yield Decision("", outcome.revision, Observed.COMMITTED, 1, None, "")
        yield Decision("", outcome.revision, Observed.RELEASED, 0, None, "")
        yield Decision("", outcome.revision, Observed.HELD, 1, 100 * TICK, "ODD", live_count=2)


def cases(*bounds: Bounds) -> Iterator[Case]:
    """Every record that the specification makes within `bounds`, the common ones also after each change of the row."""
    items = itertools.cycle(ITEMS)
    for row, revision, answer in reached(*bounds):
        sent = claimed(row, revision)
        found = claimed(row, row.revision)
        for outcome in outcomes(answer):
            yield Case(NOTHING, found, RecordOutcome(sent, outcome, SECOND), next(items))
        if isinstance(answer, Decision) and row.disposition is Disposition.HOLD and sent == found and not row.settled:
            yield Case(NOTHING, found, RecordOutcome(sent, answer, SECOND, counts_as_attempt=False), next(items))
            # No rule makes a row two renewals ahead. The guard does not rely on that.
            further = sent._replace(revision=revision + 1)
            for claim, decision in ((sent, answer), (further, replace(answer, revision=revision + 1))):
                for since, change in SINCE.items():
                    after = change(claim)
                    if after and after != claim:
                        yield Case(since, after, RecordOutcome(claim, decision, SECOND), next(items))


class AtOneTime(WriteQueries):
    """Queries whose time stands still, so that two runs can be compared."""

    now = 0

    def lock_users(self, connection: Connection, users: Collection[UserKey]) -> int:
        super().lock_users(connection, users)
        return self.now


def insert(queries: WriteQueries, connection: Connection, rows: Sequence[Case]) -> list[RecordOutcome]:
    """Insert the row of each case, each in a cart of its own. Return the records."""
    inserted: dict[str, list[Any]] = {"carts": [], "items": [], "reservations": []}
    records = []
    for number, (_, found, record, item) in enumerate(rows):
        key, name = cart_key(user_key(f"u{number}"), "default"), f"r{number}"
        row = found._replace(cart=key, reservation_id=name)
        inserted["reservations"].append(reservation_row(row))
        if row.disposition is Disposition.RELEASE:
            waiting = row._replace(disposition=Disposition.HOLD, observed_revision=0, waiting=True, due_time=None)
            inserted["reservations"].append(reservation_row(waiting._replace(reservation_id=f"w{number}")))
        if item != NO_CART:
            cart = Cart(key, "uid", CartState.ACTIVE, {}, "", False, None, 1, 0, 9, 0, 1000, 7, 6, 0, 0)
            inserted["carts"].append(cart_row(cart))
        if item in (AS_INTENDED, ONE_MORE):
            quantity = row.quantity + (item == ONE_MORE)
            line = Item(key, row.item_id, "uid", row.sku, {}, quantity, None, {}, name, 0, 0)
            inserted["items"].append(item_row(line))
        records.append(replace(record, claimed=record.claimed._replace(cart=key, reservation_id=name)))
    queries.write(connection, inserted)
    return records


class Effect(NamedTuple):
    """The answers of a batch, and its writes."""

    result: BatchResult
    answers: Sequence[Recorded]
    reservations: Sequence[Any]
    carts: Sequence[Any]


def run(queries: WriteQueries, connection: Connection, commands: Sequence[AnyCommand]) -> Effect:
    """Run a batch, read its writes, and undo them."""
    connection.exec_driver_sql("SAVEPOINT before")
    result = run_batch(queries, connection, commands, lambda: "no id", CommitMarker("w", 1))
    tables = (schema.reservations, schema.carts)
    written = [connection.execute(select(table).order_by(*table.primary_key)).all() for table in tables]
    connection.exec_driver_sql("ROLLBACK TO SAVEPOINT before")
    answers: Any = result.answers[0] if isinstance(commands[0], RecordAll) else result.answers
    return Effect(result, answers, *written)


async def compare(engine: Engine, given: Sequence[Case], now: int) -> set[str]:
    """Assert that settling the records that the guard permits has the same effect as folding all of them.

    Return the changes since the claim of the rows that were settled.
    """
    queries = AtOneTime(engine.dialect, lock_users=engine.locks_users)
    queries.now = now

    def work(connection: Connection) -> tuple[set[str], Effect, Effect]:
        records = insert(queries, connection, given)
        connection.exec_driver_sql("SAVEPOINT first")
        answers = settle(queries, connection, records, now).answers
        connection.exec_driver_sql("ROLLBACK TO SAVEPOINT first")
        settled = {case.since for case, answer in zip(given, answers, strict=True) if answer}
        return settled, run(queries, connection, [RecordAll(records)]), run(queries, connection, records)

    settled, effect, expected = await engine.transact(work)
    for case, answer, wanted in zip(given, effect.answers, expected.answers, strict=True):
        assert answer == wanted, case
    assert effect.reservations == expected.reservations
    assert effect.carts == expected.carts
    assert effect.result.changed == expected.result.changed
    assert effect.result.due == expected.result.due
    return settled


# Two renewals and two failures reach each kind of row. More of them are explored at night.
RENEWED = Bounds(changed=2, renewed=2, ticks=2, rivals=True)
ALONE = Bounds(changed=2, renewed=2, ticks=1)
FEW = (bounds_of.AGAIN_EXPIRING, Bounds(changed=3, refused=2), RENEWED, bounds_of.SOLD_LATE)
MANY = (bounds_of.AGAIN, bounds_of.REFUSED, bounds_of.EXPIRING, bounds_of.SOLD_LATE)
NIGHT = pytest.mark.night


# By day, each time on one of the two databases.
@pytest.mark.parametrize(
    ("backend", "now", "bounds"),
    [
        pytest.param("postgresql", TIMES[0], FEW, id="postgresql, before holds end"),
        pytest.param("sqlite", TIMES[1], (RENEWED,), id="sqlite, after holds end"),
        pytest.param("sqlite", TIMES[0], (*FEW, *MANY), id="sqlite, before holds end, many", marks=NIGHT),
        pytest.param("postgresql", TIMES[0], MANY, id="postgresql, before holds end, many", marks=NIGHT),
        pytest.param("sqlite", TIMES[1], (bounds_of.EXPIRING,), id="sqlite, after holds end, many", marks=NIGHT),
        pytest.param(
            "postgresql", TIMES[1], (RENEWED, bounds_of.EXPIRING), id="postgresql, after holds end, many", marks=NIGHT
        ),
    ],
)
@pytest.mark.timeout(180)  # it explores first
async def test_settling_has_the_same_effect_as_folding(engine: Engine, now: int, bounds: Sequence[Bounds]) -> None:
    assert await compare(engine, list(cases(*bounds)), now) == HARMLESS


# By day, each guard on one of the two databases. At night, each one on both.
BY_DAY = [("sqlite", 0), ("postgresql", 1), ("sqlite", 2), ("postgresql", 3), ("sqlite", 4), ("postgresql", 5)]
AT_NIGHT = [("postgresql", 0), ("sqlite", 1), ("postgresql", 2), ("sqlite", 3), ("postgresql", 4), ("sqlite", 5)]


@pytest.mark.parametrize(("backend", "dropped"), [*BY_DAY, *(pytest.param(*one, marks=NIGHT) for one in AT_NIGHT)])
async def test_no_guard_can_be_dropped(engine: Engine, monkeypatch: pytest.MonkeyPatch, dropped: int) -> None:
    real = settle_statements.as_claimed

    def as_claimed(answers: FromClause) -> list[ColumnElement[bool]]:
        return [guard for number, guard in enumerate(real(answers)) if number != dropped]

    monkeypatch.setattr(settle_statements, "as_claimed", as_claimed)
    given = [case for case in cases(ALONE) if case.since != NOTHING]
    with pytest.raises(AssertionError):
        await compare(engine, given, TIMES[0])
