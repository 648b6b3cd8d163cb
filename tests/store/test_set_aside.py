"""A row that makes a statement over many rows fail is set aside, shown to operators and ended by them.

The other rows go on. On both databases.
"""

import asyncio
import json
import logging
import re
from functools import partial

import pytest

from cart_grpc.admin import OperatorActions
from cart_grpc.background import set_aside, sweeper
from cart_grpc.background.claims import key_of
from cart_grpc.carts.progress import ProgressState, progress
from cart_grpc.carts.refusals import ReservationUnprocessable
from cart_grpc.commands.direct import Claim, ExtendLeases, SetAside
from cart_grpc.names import cart_key, user_key
from cart_grpc.protocol.lanes import HOLD_LANE, RELEASE_LANE, Lane
from cart_grpc.protocol.reservation import Observed, Reservation
from cart_grpc.rpc.admin_messages import reservation_message
from cart_grpc.rpc.admin_requests import next_page_token
from cart_grpc.store import schema
from cart_grpc.store.engine import Engine
from cart_grpc.store.read.operator_reads import BACKLOG, ReservationSnapshot, WorkState
from cart_grpc.store.read.reservation_search import ReservationPage
from cart_grpc.store.read.snapshot import Snapshot
from cart_grpc.store.store import Store
from tests.store.writes import (
    HOUR,
    KEY,
    LEASE,
    LIMITS,
    add,
    answered,
    claim_one,
    decided,
    forbid,
    overwrite,
    readable,
    remove,
    row_of,
    snapshot,
)

OTHERS = 6
TABLE = schema.reservations


@pytest.fixture
def operator(store: Store) -> OperatorActions:
    return OperatorActions(store, LIMITS, None)


async def claim(store: Store, lane: Lane = HOLD_LANE, limit: int = 64) -> list[Reservation]:
    """Claim as the reconciler does."""
    return await set_aside.claim(store, Claim(lane, limit, LEASE))


async def exhaust(engine: Engine, reservation: Reservation, **changes: object) -> None:
    """Give a reservation the last revision by hand, so that nothing can raise it, and make it due before all others."""
    values = {"revision": schema.LAST, "observed_revision": schema.LAST, "due_time": 0, **changes}
    await overwrite(engine, TABLE, TABLE.c.reservation_id == reservation.reservation_id, **values)


async def renewal_that_fails(store: Store, engine: Engine) -> Reservation:
    """Return a hold that is due for its renewal and has the last revision. OTHERS other reservations are due, too."""
    held = await decided(store)
    for number in range(OTHERS):
        await store.mutate(add(f"sku-{number}"))
    await exhaust(engine, held)
    return held


async def listed(operator: OperatorActions) -> list[ReservationSnapshot]:
    """The reservations that an operator sees by default and that are set aside."""
    found = readable((await operator.list(ReservationPage(100, BACKLOG, 0, 0, None))).reservations)
    only = readable(
        (await operator.list(ReservationPage(100, frozenset({WorkState.SET_ASIDE}), 0, 0, None))).reservations
    )
    assert [each.reservation for each in found if each.state is WorkState.SET_ASIDE] == [
        each.reservation for each in only
    ]
    return only


async def test_a_row_that_makes_claims_fail_is_set_aside_once_and_the_others_are_claimed(
    store: Store, engine: Engine, operator: OperatorActions, caplog: pytest.LogCaptureFixture
) -> None:
    bad = await renewal_that_fails(store, engine)
    claimed = await claim(store)
    assert sorted(row.sku for row in claimed) == [f"sku-{number}" for number in range(OTHERS)]
    alarm = (
        rf"ALARM reservation {bad.reservation_id}: set aside .*: (CheckViolation|Integrity)Error: .*reservations_last"
    )
    [record] = [each for each in caplog.records if each.levelno >= logging.ERROR]
    assert re.fullmatch(alarm, record.message.rstrip('"'))
    assert await claim(store) == []
    assert not await store.has_due(HOLD_LANE)
    [seen] = await listed(operator)
    assert seen.reservation.reservation_id == bad.reservation_id
    assert "reservations_last" in seen.reservation.set_aside_reason
    assert seen.reservation.due_time is seen.reservation.lease_expire_time is None
    [one] = [each for each in (await operator.get_stats()).backlog if each.state is WorkState.SET_ASIDE]
    assert one.count == 1
    assert len([each for each in caplog.records if each.levelno >= logging.ERROR]) == 1


async def test_callers_see_the_hold_until_it_expires_and_then_why_nothing_happens(store: Store, engine: Engine) -> None:
    held = await renewal_that_fails(store, engine)
    await claim(store)
    seen = await snapshot(store)
    line = next(line for line in seen.lines if line.reservation.reservation_id == held.reservation_id)
    assert progress(line, seen.now).state is ProgressState.RESERVED
    lapsed = progress(line, seen.now + HOUR)
    assert lapsed.state is ProgressState.EXPIRED
    assert "operator" in lapsed.message


async def test_callers_see_a_new_reservation_as_pending_and_why_nothing_happens(store: Store, engine: Engine) -> None:
    await store.mutate(add())
    await overwrite(engine, TABLE, attempt_count=schema.LAST)
    await claim(store)
    seen = await snapshot(store)
    shown = progress(seen.lines[0], seen.now)
    assert shown.state is ProgressState.PENDING
    assert "operator" in shown.message


@pytest.mark.one_shard
async def test_a_retried_row_that_still_fails_is_set_aside_again(
    store: Store, engine: Engine, operator: OperatorActions
) -> None:
    bad = await renewal_that_fails(store, engine)
    await claim(store)
    again = await operator.retry(bad.reservation_id)
    assert (again.reservation.reservation_id, again.reservation.set_aside_reason) == (bad.reservation_id, "")
    assert await store.has_due(HOLD_LANE)
    assert await claim(store) == []
    assert (await operator.get(bad.reservation_id)).state is WorkState.SET_ASIDE


async def test_a_retried_row_that_was_corrected_is_claimed(
    store: Store, engine: Engine, operator: OperatorActions
) -> None:
    await store.mutate(add())
    await overwrite(engine, TABLE, attempt_count=schema.LAST)
    assert await claim(store) == []
    [bad] = await listed(operator)
    # A retry also begins to count the attempts again.
    await operator.retry(bad.reservation.reservation_id)
    assert [row.reservation_id for row in await claim(store)] == [bad.reservation.reservation_id]
    assert await listed(operator) == []


async def test_a_forced_release_ends_the_row_and_the_item_can_be_reserved_again(
    store: Store, engine: Engine, operator: OperatorActions, caplog: pytest.LogCaptureFixture
) -> None:
    bad = await renewal_that_fails(store, engine)
    await claim(store)
    caplog.clear()
    with pytest.raises(ReservationUnprocessable, match="force"):
        await operator.release(bad.reservation_id, "their ticket 17", force=False)
    ended = await operator.release(bad.reservation_id, "their ticket 17", force=True)
    assert (ended.state, ended.reservation.revision) == (WorkState.REJECTED, schema.LAST)
    assert ended.reservation.set_aside_reason == ""
    assert f"ALARM reservation {bad.reservation_id}: an operator forced its release" in caplog.text
    assert await listed(operator) == []
    new = await operator.retry(bad.reservation_id)
    assert new.reservation.reservation_id != bad.reservation_id
    assert [row.reservation_id for row in await claim(store)] == [new.reservation.reservation_id]


async def test_a_row_in_the_lane_of_releases_is_set_aside_too(store: Store, engine: Engine) -> None:
    for sku in "ab":
        await decided(store, Observed.HELD, sku)
        await store.mutate(remove(sku))
    [bad, good] = await store.reads.find_due(RELEASE_LANE, 10)
    await overwrite(engine, TABLE, TABLE.c.reservation_id == bad.reservation_id, attempt_count=schema.LAST)
    assert [row.reservation_id for row in await claim(store, RELEASE_LANE)] == [good.reservation_id]
    assert (await row_of(engine, bad.reservation_id)).set_aside_reason


async def test_several_bad_rows_are_set_aside_in_one_round(store: Store, engine: Engine) -> None:
    bad = [await decided(store, Observed.HELD, f"bad-{number}") for number in range(3)]
    for each in bad:
        await exhaust(engine, each)
    await store.mutate(add("good"))
    assert [row.sku for row in await claim(store)] == ["good"]


async def test_a_row_that_has_another_epoch_by_now_is_not_set_aside(store: Store, engine: Engine) -> None:
    await store.mutate(add())
    [row] = await store.reads.find_due(HOLD_LANE, 1)
    await claim_one(store)
    assert not await store.set_aside(SetAside(row, "late"))
    assert (await row_of(engine, row.reservation_id)).set_aside_reason == ""


@pytest.mark.one_shard
async def test_a_claim_whose_lease_cannot_be_extended_is_set_aside_and_the_others_are_extended(
    store: Store, engine: Engine
) -> None:
    for sku in ("bad", "good"):
        await store.mutate(add(sku))
    bad, good = sorted(await claim(store), key=lambda row: row.sku)
    before = (await row_of(engine, good.reservation_id)).lease_expire_time
    await engine.transact(partial(forbid, "NEW.sku = 'bad' AND NEW.lease_expire_time IS NOT NULL"))
    await set_aside.update_leases(store, ExtendLeases([bad, good], LEASE))
    assert (await row_of(engine, good.reservation_id)).lease_expire_time > before
    assert "forbidden" in (await row_of(engine, bad.reservation_id)).set_aside_reason


async def test_an_answer_to_a_row_that_is_set_aside_counts_and_ends_that(store: Store, engine: Engine) -> None:
    await store.mutate(add())
    claimed = await claim_one(store)
    await store.set_aside(SetAside(key_of(claimed), "why"))
    await store.record(answered(claimed))
    row = await row_of(engine, claimed.reservation_id)
    assert (row.set_aside_reason, row.observed_revision) == ("", 1)
    assert row.due_time


async def test_a_cart_that_cannot_be_read_fails_alone(store: Store, engine: Engine) -> None:
    """Its callers get an error; carts in the same batch and in the same read do not."""
    other = cart_key(user_key("bob"), "default")
    await store.mutate(add())
    await store.mutate(add(key=other))
    await overwrite(engine, schema.items, schema.items.c.user_id == KEY.user_id, labels="not JSON")
    await store.mutate(add("tea", key=other))
    results = await asyncio.gather(store.mutate(add()), store.mutate(add("milk", key=other)), return_exceptions=True)
    assert [type(result) for result in results] == [json.JSONDecodeError, bytes]
    read = await asyncio.gather(snapshot(store), snapshot(store, other), return_exceptions=True)
    assert [type(result) for result in read] == [json.JSONDecodeError, Snapshot]


async def test_a_row_that_cannot_be_read_hides_no_other_row_from_operators(
    store: Store, engine: Engine, operator: OperatorActions
) -> None:
    for sku in ("labels", "quantity", "good"):
        await store.mutate(add(sku))
    await overwrite(engine, schema.items, schema.items.c.sku == "labels", labels="not JSON")
    await overwrite(engine, TABLE, TABLE.c.sku == "quantity", quantity=2**40)
    found = await operator.list(ReservationPage(3, BACKLOG, 0, 0, None))
    records = [reservation_message(each) for each in found.reservations]
    assert ["cannot be read" in record.set_aside_reason for record in records] == [True, True, False]
    assert all(record.name for record in records)
    assert next_page_token(ReservationPage(1, BACKLOG, 0, 0, None), found.positions[0])
    name = records[0].name.removeprefix("reservations/")
    with pytest.raises(ReservationUnprocessable, match="cannot be read"):
        await operator.release(name, "why", force=True)


async def test_carts_that_cannot_be_expired_do_not_keep_the_others_from_it(
    store: Store, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    idle = [cart_key(user_key(f"user-{number}"), "default") for number in range(sweeper.BATCH_SIZE + 1)]
    bad, good = idle[:-1], idle[-1]
    await asyncio.gather(*(store.mutate(add(key=key)) for key in idle))
    await overwrite(engine, schema.items, schema.items.c.user_id != good.user_id, labels="not JSON")
    await overwrite(engine, schema.carts, ttl_us=1, expire_time=1)
    await overwrite(engine, schema.carts, schema.carts.c.user_id == good.user_id, expire_time=2)
    never = sweeper.Retention(HOUR, HOUR, HOUR)
    sweeping = sweeper.Sweeper(store, never, HOUR)
    assert [(await sweeping.run_once()).changed["expire carts"] for _ in range(3)] == [0, 1, 0]
    alarms = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert sorted(alarms) == sorted(f"ALARM {key.name}: the sweeper cannot expire carts" for key in bad)
