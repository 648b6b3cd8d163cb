"""The operators' reads and commands, on both databases."""

import asyncio
import re
from dataclasses import replace
from typing import Any

import pytest

from cart_grpc import app
from cart_grpc.admin import OperatorActions
from cart_grpc.carts.progress import ProgressState, progress
from cart_grpc.carts.refusals import CartClosed, ReservationCommitted, ReservationNotFound
from cart_grpc.commands.direct import ExtendLeases
from cart_grpc.commands.record import RecordOutcome
from cart_grpc.names import cart_key, item_id_of, user_key
from cart_grpc.protocol.lanes import CHECKOUT_LANE, HOLD_LANE, RELEASE_LANE
from cart_grpc.protocol.reservation import RELEASED_BY_OPERATOR, Disposition, Observed, PermanentFailure, Reservation
from cart_grpc.store import schema
from cart_grpc.store.engine import Engine
from cart_grpc.store.read.operator_reads import (
    BACKLOG,
    ReservationSnapshot,
    WorkState,
)
from cart_grpc.store.read.reservation_search import ReservationPage
from cart_grpc.store.store import Store
from tests.store.writes import (
    HOUR,
    KEY,
    LEASE,
    LIMITS,
    SKU,
    add,
    answered,
    claim,
    claim_one,
    count,
    decided,
    overwrite,
    readable,
    remove,
    row_of,
    silent,
    snapshot,
)

EVERYTHING = frozenset(WorkState)


@pytest.fixture
def operator(store: Store) -> OperatorActions:
    return OperatorActions(store, LIMITS, None)


async def rows(
    operator: OperatorActions,
    states: frozenset[WorkState] = BACKLOG,
    min_age: int = 0,
    min_attempts: int = 0,
    **more: Any,
) -> list[ReservationSnapshot]:
    """List reservations."""
    page = ReservationPage(100, states, min_age, min_attempts, None, **more)
    return readable((await operator.list(page)).reservations)


async def only(operator: OperatorActions, states: frozenset[WorkState] = EVERYTHING) -> ReservationSnapshot:
    """List the only reservation."""
    [seen] = await rows(operator, states)
    return seen


async def behind_an_old_release(store: Store) -> tuple[Reservation, str]:
    """Return a reservation that is being released, and the id of a new one that waits for it."""
    old = await decided(store)
    await store.mutate(remove())
    await store.mutate(add())
    [line] = (await snapshot(store)).lines
    return old, line.reservation.reservation_id


async def shown(store: Store) -> ProgressState:
    """Return the state of the only item as callers see it."""
    seen = await snapshot(store)
    [line] = seen.lines
    return progress(line, seen.now).state


async def committing(store: Store, engine: Engine) -> Reservation:
    """Return a reservation that is being committed."""
    held = await decided(store)
    await overwrite(engine, schema.reservations, disposition=2, revision=2, intent_revision=2, due_time=0)
    return held


async def test_the_work_state_follows_a_reservation_from_due_to_calling_to_backing_off(
    store: Store, operator: OperatorActions
) -> None:
    await store.mutate(add())
    seen = [(await only(operator)).state]
    claimed = await claim_one(store)
    seen.append((await only(operator)).state)
    await store.record(silent(claimed, HOUR))
    seen.append((await only(operator)).state)
    assert seen == [WorkState.DUE, WorkState.CALLING, WorkState.BACKING_OFF]


@pytest.mark.parametrize(
    ("observed", "changes", "state"),
    [
        (Observed.HELD, {}, WorkState.HELD),
        (Observed.HELD, {"expire_time": 1}, WorkState.EXPIRED),
        (Observed.EXPIRED, {}, WorkState.EXPIRED),
        (Observed.REJECTED, {"reason": "OUT_OF_STOCK"}, WorkState.REJECTED),
        (Observed.COMMITTED, {}, WorkState.COMMITTED),
    ],
)
async def test_a_settled_reservation_is_listed_only_under_its_own_state(
    store: Store, operator: OperatorActions, observed: Observed, changes: dict[str, object], state: WorkState
) -> None:
    await decided(store, observed, **changes)
    assert await rows(operator) == []
    assert await rows(operator, EVERYTHING - {state}) == []
    seen = await only(operator, frozenset({state}))
    assert (seen.state, seen.line is not None) == (state, True)


async def test_a_finished_release_is_listed_as_released_without_an_item(
    store: Store, operator: OperatorActions
) -> None:
    await decided(store)
    await store.mutate(remove())
    assert (await only(operator, BACKLOG)).line is None
    await store.record(answered(await claim_one(store, RELEASE_LANE)))
    assert await rows(operator) == []
    assert (await only(operator)).state is WorkState.RELEASED


async def test_a_failure_sealed_with_a_release_is_listed_as_rejected_until_its_item_is_removed(
    store: Store, operator: OperatorActions
) -> None:
    await store.mutate(add())
    await store.record(RecordOutcome(await claim_one(store), PermanentFailure("INVALID_SKU", "no such thing"), 0))
    await store.record(answered(await claim_one(store, RELEASE_LANE)))
    assert (await only(operator)).state is WorkState.REJECTED
    await store.mutate(remove())
    assert (await only(operator)).state is WorkState.RELEASED


async def test_a_renewal_is_not_backlog_and_is_listed_as_the_hold_that_it_renews(
    store: Store, operator: OperatorActions
) -> None:
    await decided(store, expire_time=app.clock() + 1)
    await claim_one(store)
    assert await rows(operator) == []
    assert (await only(operator)).state is WorkState.EXPIRED


async def test_a_claim_of_a_dead_replica_is_listed_as_due_after_its_lease(
    store: Store, operator: OperatorActions
) -> None:
    await store.mutate(add())
    await claim_one(store, lease=1)
    seen = await only(operator, BACKLOG)
    assert seen.state is WorkState.DUE
    assert seen.reservation.lease_expire_time is not None
    stats = await operator.get_stats()
    assert (stats.due_count, stats.oldest_due_time) == (1, seen.reservation.due_time)


async def test_pages_list_the_reservations_of_all_users_oldest_first(store: Store, operator: OperatorActions) -> None:
    for number in range(7):
        # Several in one batch, so that several have the same create_time.
        names = [f"user-{number}-{other}" for other in range(number % 3 + 1)]
        await asyncio.gather(*(store.mutate(add(key=cart_key(user_key(name), "default"))) for name in names))
    everything = await rows(operator)
    assert len(everything) == 13
    order = [(seen.reservation.create_time, seen.reservation.reservation_id) for seen in everything]
    assert order == sorted(order)
    page, paged = ReservationPage(4, BACKLOG, 0, 0, None), []
    for _ in range(4):
        found = await operator.list(page)
        assert len(found.reservations) <= 4
        paged += readable(found.reservations)
        page = replace(page, after=found.next_after)
    assert page.after is None
    assert [seen.reservation.reservation_id for seen in paged] == [reservation_id for _, reservation_id in order]


async def test_lists_are_filtered_by_age_and_attempts(store: Store, operator: OperatorActions) -> None:
    await store.mutate(add())
    assert await rows(operator, min_age=HOUR) == []
    assert len(await rows(operator, min_age=1)) == 1
    assert await rows(operator, min_attempts=1) == []
    await store.record(silent(await claim_one(store), HOUR))
    assert len(await rows(operator, min_attempts=1)) == 1
    assert await rows(operator, min_attempts=2) == []


@pytest.mark.parametrize("states", [BACKLOG, EVERYTHING])
async def test_lists_are_filtered_by_user_cart_and_sku(
    store: Store, operator: OperatorActions, states: frozenset[WorkState]
) -> None:
    keys = [cart_key(user_key(user), cart) for user in ("alice", "bob") for cart in ("default", "wishes")]
    for key in keys:
        for sku in ("kettle", "tea"):
            await store.mutate(add(sku, key=key))
    for parent, sku, many in (
        (keys[0].user, "", 4), (keys[2], "", 2), (keys[2], "tea", 1), (None, "tea", 4),
        (keys[2].user, "tea", 2), (user_key("carol"), "", 0), (None, "coffee", 0),
    ):  # fmt: skip
        found = [seen.reservation for seen in await rows(operator, states, parent=parent, sku=sku)]
        assert len(found) == many, (parent, sku)
        assert all(one.cart[: len(parent)] == parent for one in found if parent)
        assert all(one.sku == sku for one in found if sku)


async def test_a_search_of_settled_reservations_finds_each_once_whatever_the_page_looks_at(
    store: Store, operator: OperatorActions
) -> None:
    for number in range(7):
        await store.mutate(add(key=cart_key(user_key(f"user-{number}"), "default")))
    for claimed in (await claim(store))[:5]:
        await store.record(answered(claimed))
    expected = {seen.reservation.reservation_id for seen in await rows(operator, frozenset({WorkState.HELD}))}
    assert len(expected) == 5
    for size, look in ((1, 100), (2, 3), (100, 1), (5, 7)):
        page, paged = ReservationPage(size, frozenset({WorkState.HELD}), 0, 0, None, look=look), []
        for _ in range(20):
            found = await operator.list(page)
            paged += [seen.reservation.reservation_id for seen in readable(found.reservations)]
            page = replace(page, after=found.next_after)
            if page.after is None:
                break
        assert (set(paged), len(paged)) == (expected, 5), (size, look)


@pytest.mark.parametrize("disposition", [Disposition.COMMIT, Disposition.RELEASE])
async def test_the_backlog_has_what_a_checkout_waits_for_and_no_superseded_hold(
    store: Store, operator: OperatorActions, engine: Engine, disposition: Disposition
) -> None:
    held, table = await decided(store), schema.reservations
    passed = {"checkout_id": "01900000-0000-7000-8000-000000000000", "disposition": int(disposition)}
    await overwrite(engine, table, revision=2, intent_revision=2, due_time=0, **passed)
    assert [seen.reservation.reservation_id for seen in await rows(operator)] == [held.reservation_id]
    assert [one.disposition for one in (await operator.get_stats()).backlog] == [disposition]
    await overwrite(
        engine, table, disposition=1, checkout_id="", superseded_by="x", observed_revision=2, due_time=2**60
    )
    assert await rows(operator) == []
    assert (await operator.get_stats()).backlog == []


async def test_a_reservation_is_found_by_its_id_alone_and_an_unknown_id_is_not_found(
    store: Store, operator: OperatorActions
) -> None:
    for number in range(5):
        await store.mutate(add(key=cart_key(user_key(f"user-{number}"), "default")))
    for seen in await rows(operator):
        assert (await operator.get(seen.reservation.reservation_id)).reservation == seen.reservation
    with pytest.raises(ReservationNotFound):
        await operator.get(app.new_id())


async def test_stats_count_the_backlog_by_state_and_intent(store: Store, operator: OperatorActions) -> None:
    empty = await operator.get_stats()
    assert (list(empty.backlog), empty.due_count, empty.oldest_due_time, empty.pause) == ([], 0, None, None)
    await behind_an_old_release(store)
    for sku in "abc":
        await store.mutate(add(sku))
    await claim(store, limit=1)
    stats = await operator.get_stats()
    figures = {(one.state.name, one.disposition.name): one.count for one in stats.backlog}
    expected = {("WAITING", "HOLD"): 1, ("DUE", "HOLD"): 2, ("CALLING", "HOLD"): 1, ("DUE", "RELEASE"): 1}
    assert figures == expected
    seen = await rows(operator)
    assert stats.due_count == 3
    oldest = min(one.reservation.due_time for one in seen if one.state is WorkState.DUE and one.reservation.due_time)
    assert stats.oldest_due_time == oldest
    assert min(one.oldest_create_time for one in stats.backlog) == seen[0].reservation.create_time


async def test_renewals_that_are_due_are_counted_as_due(store: Store, operator: OperatorActions) -> None:
    await decided(store, expire_time=app.clock() + 1)
    assert (await operator.get_stats()).due_count == 1


async def test_retry_makes_a_reservation_that_backs_off_due_now(store: Store, operator: OperatorActions) -> None:
    await store.mutate(add())
    claimed = await claim_one(store)
    await store.record(silent(claimed, HOUR))
    before = (await snapshot(store)).cart
    seen = await operator.retry(claimed.reservation_id)
    assert (seen.state, seen.reservation.attempt_count, seen.reservation.revision) == (WorkState.DUE, 0, 1)
    assert (await claim_one(store)).attempt_count == 1
    # Callers see the retry; the etag shows that no caller changed the cart.
    assert (await snapshot(store)).cart == before._replace(revision=before.revision + 1)


async def test_retry_repeats_a_hanging_call_and_the_end_of_the_old_call_changes_nothing(
    store: Store, operator: OperatorActions
) -> None:
    await store.mutate(add())
    hanging = await claim_one(store)
    await operator.retry(hanging.reservation_id)
    second = await claim_one(store)
    await store.record(silent(hanging, HOUR))
    assert (await only(operator)).state is WorkState.CALLING
    await store.record(answered(second, expire_time=second.create_time + second.ttl_us))
    assert await shown(store) is ProgressState.RESERVED


@pytest.mark.parametrize(
    ("observed", "changes"),
    [(Observed.REJECTED, {"reason": "OUT_OF_STOCK"}), (Observed.EXPIRED, {}), (Observed.HELD, {"expire_time": 1})],
)
async def test_retry_asks_again_for_a_rejected_or_expired_item_and_keeps_the_etag(
    store: Store, operator: OperatorActions, observed: Observed, changes: dict[str, object]
) -> None:
    claimed = await decided(store, observed, **changes)
    before = (await snapshot(store)).cart
    seen = await operator.retry(claimed.reservation_id)
    assert (seen.state, seen.reservation.revision) == (WorkState.DUE, 2)
    assert seen.reservation.reservation_id == claimed.reservation_id
    after = (await snapshot(store)).cart
    assert (after.etag, after.update_time, after.revision) == (before.etag, before.update_time, before.revision + 1)
    await store.record(answered(await claim_one(store)))
    assert await shown(store) is ProgressState.RESERVED


async def test_retry_does_not_change_a_settled_reservation(store: Store, operator: OperatorActions) -> None:
    claimed = await decided(store)
    before = await snapshot(store)
    assert (await operator.retry(claimed.reservation_id)).state is WorkState.HELD
    assert replace(await snapshot(store), now=before.now) == before
    await store.mutate(remove())
    await store.record(answered(await claim_one(store, RELEASE_LANE)))
    assert (await operator.retry(claimed.reservation_id)).state is WorkState.RELEASED
    assert await claim(store) == []


async def test_a_forced_release_unblocks_the_hold_that_waits_for_it(store: Store, operator: OperatorActions) -> None:
    old, new = await behind_an_old_release(store)
    assert (await operator.retry(new)).state is WorkState.WAITING
    assert (await operator.get(old.reservation_id)).state is WorkState.DUE
    await store.record(
        RecordOutcome(await claim_one(store, RELEASE_LANE), PermanentFailure("NOT_ALLOWED", "never"), HOUR)
    )
    assert (await operator.get(old.reservation_id)).state is WorkState.BACKING_OFF
    revision = (await snapshot(store)).cart.revision
    assert (await operator.release(old.reservation_id, "it is gone", force=True)).state is WorkState.RELEASED
    assert (await operator.get(new)).state is WorkState.DUE
    assert (await snapshot(store)).cart.revision > revision
    assert (await claim_one(store)).reservation_id == new


async def test_release_of_an_items_hold_rejects_the_item_until_it_is_retried(
    store: Store, operator: OperatorActions
) -> None:
    claimed = await decided(store)
    before = (await snapshot(store)).cart
    seen = await operator.release(claimed.reservation_id, "their stock was damaged", force=False)
    assert (seen.state, seen.reservation.last_error) == (
        WorkState.DUE,
        f"{RELEASED_BY_OPERATOR}: their stock was damaged",
    )
    assert await shown(store) is ProgressState.PENDING
    assert (await snapshot(store)).cart.revision == before.revision + 1
    await store.record(answered(await claim_one(store, RELEASE_LANE)))
    assert await shown(store) is ProgressState.REJECTED
    [line] = (await snapshot(store)).lines
    assert line.reservation.seal_reason == RELEASED_BY_OPERATOR
    assert (await snapshot(store)).cart.etag == before.etag
    again = await operator.retry(claimed.reservation_id)
    assert again.reservation.reservation_id != claimed.reservation_id
    assert again.state is WorkState.DUE


async def test_a_forced_release_finishes_at_once_and_logs_an_alarm(
    store: Store, operator: OperatorActions, caplog: pytest.LogCaptureFixture
) -> None:
    claimed = await decided(store)
    seen = await operator.release(claimed.reservation_id, "their ticket 17", force=True)
    assert (seen.state, seen.reservation.granted_quantity, seen.reservation.settled) == (WorkState.REJECTED, 0, True)
    assert seen.reservation.finish_time
    assert await claim(store, RELEASE_LANE) == await claim(store, HOLD_LANE) == []
    alarm = rf"ALARM reservation {claimed.reservation_id}: .*up to 1 of {SKU} may still be held there"
    assert re.search(alarm, caplog.text)
    assert "their ticket 17" in caplog.text
    caplog.clear()
    await operator.release(claimed.reservation_id, "again", force=True)
    assert "ALARM" not in caplog.text
    assert (await operator.get(claimed.reservation_id)).reservation == seen.reservation


async def test_the_answer_of_a_running_call_cannot_undo_a_forced_release(
    store: Store, operator: OperatorActions
) -> None:
    await store.mutate(add())
    claimed = await claim_one(store)
    finished = await operator.release(claimed.reservation_id, "never mind", force=True)
    await store.record(answered(claimed))
    await store.update_leases(ExtendLeases([claimed], LEASE))
    assert (await operator.get(claimed.reservation_id)).reservation == finished.reservation
    assert await shown(store) is ProgressState.REJECTED


@pytest.mark.parametrize("force", [False, True])
async def test_a_committing_or_committed_reservation_cannot_be_released(
    store: Store, operator: OperatorActions, engine: Engine, force: bool
) -> None:
    held = await committing(store, engine)
    before = await row_of(engine, held.reservation_id)
    with pytest.raises(ReservationCommitted, match="COMMITTING"):
        await operator.release(held.reservation_id, "no", force=force)
    assert await row_of(engine, held.reservation_id) == before
    await store.record(answered(await claim_one(store, CHECKOUT_LANE), state=Observed.COMMITTED))
    with pytest.raises(ReservationCommitted, match="COMMITTED"):
        await operator.release(held.reservation_id, "no", force=force)


async def test_retry_makes_a_commit_due_now(store: Store, operator: OperatorActions, engine: Engine) -> None:
    held = await committing(store, engine)
    await store.record(silent(await claim_one(store, CHECKOUT_LANE), HOUR))
    assert (await operator.get(held.reservation_id)).state is WorkState.BACKING_OFF
    assert (await operator.retry(held.reservation_id)).state is WorkState.DUE


async def test_retry_of_an_item_in_an_ended_cart_is_refused(
    store: Store, operator: OperatorActions, engine: Engine
) -> None:
    claimed = await decided(store, Observed.REJECTED)
    await overwrite(engine, schema.carts, state=2)
    with pytest.raises(CartClosed):
        await operator.retry(claimed.reservation_id)


async def test_release_of_a_reservation_that_was_purged_after_it_was_read_is_not_found(
    store: Store, operator: OperatorActions, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed = await decided(store)
    found = await operator.get(claimed.reservation_id)
    await store.mutate(remove())
    await engine.transact(lambda connection: connection.execute(schema.reservations.delete()))

    async def stale(_: str) -> ReservationSnapshot:
        return found

    monkeypatch.setattr(store.operator_reads, "get", stale)
    with pytest.raises(ReservationNotFound):
        await operator.release(claimed.reservation_id, "late", force=False)


async def test_a_pause_stops_claims_but_neither_running_calls_nor_callers(
    store: Store, operator: OperatorActions, engine: Engine
) -> None:
    await store.mutate(add("under way"))
    claimed = await claim_one(store)
    await operator.pause("their maintenance")
    await store.mutate(add())
    await store.mutate(add("removed"))
    await store.mutate(remove("removed"))
    for lane in (HOLD_LANE, RELEASE_LANE):
        assert not await store.has_due(lane)
        assert await claim(store, lane) == []
    before = (await row_of(engine, claimed.reservation_id)).lease_expire_time
    await store.update_leases(ExtendLeases([claimed], 2 * LEASE))
    assert (await row_of(engine, claimed.reservation_id)).lease_expire_time > before
    await store.record(answered(claimed))
    assert len(await rows(operator, frozenset({WorkState.HELD}))) == 1
    assert (await operator.get_stats()).due_count == 2
    await operator.resume()
    store.due_shards.poll(everywhere=True)
    assert await store.has_due(HOLD_LANE)
    assert (await claim_one(store)).sku == SKU
    assert (await claim_one(store, RELEASE_LANE)).sku == "removed"


@pytest.mark.one_shard
async def test_a_second_pause_keeps_the_time_and_replaces_the_reason(
    store: Store, operator: OperatorActions, engine: Engine
) -> None:
    first = await operator.pause("maintenance")
    second = await operator.pause("it takes longer")
    assert first
    assert second
    assert (second.create_time, second.reason) == (first.create_time, "it takes longer")
    assert (await operator.get_stats()).pause == second
    assert await count(engine, schema.pauses) == 1
    await operator.resume()
    await operator.resume()
    assert (await operator.get_stats()).pause is None


async def test_an_operators_command_can_share_a_batch_with_callers(store: Store, operator: OperatorActions) -> None:
    claimed = await decided(store, Observed.REJECTED)
    await asyncio.gather(
        *(store.mutate(add(f"sku-{n}")) for n in range(5)), operator.retry(claimed.reservation_id), store.mutate(add())
    )
    seen = await snapshot(store)
    assert len(seen.lines) == 6
    line = next(line for line in seen.lines if line.item.item_id == item_id_of(SKU, {}))
    assert (line.item.quantity, line.reservation.quantity) == (2, 2)
    assert seen.cart.key == KEY
