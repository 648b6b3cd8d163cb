"""Merging two carts in the database: rows move between users, and nothing leaks whatever happens around it."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from cart_grpc.admin import OperatorActions
from cart_grpc.carts.calls import DeleteCart, ItemUpdate, Limits, MergeCarts, UpdateItem
from cart_grpc.carts.model import CartState
from cart_grpc.commands.direct import Purge
from cart_grpc.commands.mutation import Mutation
from cart_grpc.commands.operator import Release, Retry
from cart_grpc.commands.record import OpenAttempt, RecordOutcome
from cart_grpc.names import CartKey, cart_key, item_id_of, user_key
from cart_grpc.protocol.lanes import RELEASE_LANE
from cart_grpc.protocol.reservation import FINAL, Disposition, Observed, PermanentFailure, Reservation
from cart_grpc.store.engine import Engine
from cart_grpc.store.rows import to_reservation
from cart_grpc.store.store import Store
from cart_grpc.store.write_queue import WriteQueue
from tests.invariants.dump import read_dump
from tests.store.test_stored_bytes import assert_consistent
from tests.store.writes import (
    KEY,
    LIMITS,
    SECOND,
    SKU,
    add,
    answered,
    claim,
    claim_one,
    mutation,
    release_all,
    remove,
    row_of,
    silent,
    snapshot,
)


def _same_slice(user_id: str) -> str:
    """A user in the slice of `user_id`."""
    candidates = (f"guest-{number}" for number in range(10_000))
    return next(each for each in candidates if user_key(each).slice == user_key(user_id).slice)


# A guest in another slice, a guest in the same slice, and another cart of the same user.
GUESTS: Mapping[str, CartKey] = {
    "another slice": cart_key(user_key("guest"), "default"),
    "the same slice": cart_key(user_key(_same_slice(KEY.user_id)), "default"),
    "the same user": cart_key(KEY.user, "wishes"),
}
GUEST = GUESTS["another slice"]
guests = pytest.mark.parametrize("guest", GUESTS.values(), ids=GUESTS)


def merge(source: CartKey = GUEST, target: CartKey = KEY, limits: Limits = LIMITS, **more: Any) -> Mutation:
    return replace(mutation(MergeCarts(target, source, **more)), limits=limits)


async def holding(store: Store, key: CartKey, quantity: int, sku: str = SKU) -> Reservation:
    """Add an item that is then held. Return its claim."""
    await store.mutate(add(sku, quantity, key))
    claims = {claimed.cart: claimed for claimed in await claim(store)}
    for cart, claimed in claims.items():
        await store.record(answered(claimed) if cart == key else silent(claimed))
    return claims[key]


async def reservation(engine: Engine, reservation_id: str) -> Reservation:
    return to_reservation(await row_of(engine, reservation_id))


async def settle_all(store: Store, **changes: Any) -> Sequence[Reservation]:
    """Answer all due calls until nothing is due. `changes` replace fields of the decisions on holds."""
    seen: list[Reservation] = []
    while claimed := [*await claim(store), *await claim(store, RELEASE_LANE)]:
        seen += claimed
        for each in claimed:
            await store.record(answered(each, **(changes if each.disposition is Disposition.HOLD else {})))
    return seen


@guests
async def test_items_and_their_reservations_move_and_the_totals_stay_exact(
    store: Store, engine: Engine, guest: CartKey
) -> None:
    claimed = await holding(store, guest, 2)
    await store.mutate(add("tea", 3, guest))
    await store.mutate(add("milk", 1))
    await store.mutate(merge(guest))
    await assert_consistent(engine)
    merged, ended = await snapshot(store), await snapshot(store, guest)
    assert {line.item.sku: line.item.quantity for line in merged.lines} == {SKU: 2, "tea": 3, "milk": 1}
    assert (ended.cart.state, ended.cart.merged_into, ended.lines) == (CartState.MERGED, KEY.name, [])
    moved = await reservation(engine, claimed.reservation_id)
    assert (moved.cart, moved.state, moved.granted_quantity) == (KEY, Observed.HELD, 2)
    await settle_all(store)
    assert not (await snapshot(store)).reconciling
    await assert_consistent(engine)


@guests
async def test_the_answer_of_a_call_under_the_old_cart_is_dropped_and_the_next_claim_repeats_it(
    store: Store, engine: Engine, guest: CartKey
) -> None:
    await store.mutate(add(quantity=2, key=guest))
    before = await claim_one(store)
    await store.mutate(merge(guest))
    # The two ways of recording, and the one that opens an attempt.
    await store.record(answered(before))
    await store.record(RecordOutcome(before, answered(before).outcome, 0, counts_as_attempt=False))
    assert await store.open_attempt(OpenAttempt(before, SECOND)) is None
    moved = await reservation(engine, before.reservation_id)
    assert (moved.cart, moved.observed_revision, moved.lease_expire_time) == (KEY, 0, None)
    again = await claim_one(store)
    assert (again.cart, again.revision) == (KEY, before.revision)
    assert again.lease_epoch > before.lease_epoch
    await store.record(answered(again))
    assert not (await snapshot(store)).reconciling


@guests
@pytest.mark.one_shard
async def test_a_merge_in_one_batch_with_the_answer_and_with_later_commands_loses_nothing(
    store: Store, engine: Engine, idle: WriteQueue, guest: CartKey
) -> None:
    await store.mutate(add(quantity=2, key=guest))
    claimed = await claim_one(store)
    answers = [
        idle.submit(add(quantity=1, key=guest)),
        idle.submit(merge(guest)),
        idle.submit_background(answered(claimed)),
        idle.submit(add("tea", 1)),
        idle.submit(add("tea", 4, guest)),
    ]
    await idle.start()
    await asyncio.gather(*answers)
    await idle.close()
    merged, again = await snapshot(store), await snapshot(store, guest)
    assert {line.item.sku: line.item.quantity for line in merged.lines} == {SKU: 3, "tea": 1}
    assert (again.cart.state, again.cart.total_quantity) == (CartState.ACTIVE, 4)
    moved = await reservation(engine, claimed.reservation_id)
    assert (moved.granted_quantity, moved.quantity) == (2, 3)
    await assert_consistent(engine)
    await settle_all(store)
    assert not (await snapshot(store)).reconciling


async def test_a_cart_that_goes_to_another_user_and_back_in_one_batch_is_written_once(
    store: Store, engine: Engine, idle: WriteQueue
) -> None:
    claimed = await holding(store, GUEST, 2)
    answers = [idle.submit(merge(GUEST, KEY)), idle.submit(merge(KEY, GUEST))]
    await idle.start()
    await asyncio.gather(*answers)
    await idle.close()
    assert (await reservation(engine, claimed.reservation_id)).cart == GUEST
    assert [line.item.quantity for line in (await snapshot(store, GUEST)).lines] == [2]
    await assert_consistent(engine)


async def test_a_repeated_merge_changes_nothing(store: Store, engine: Engine) -> None:
    await holding(store, GUEST, 2)
    await store.mutate(merge())
    before = await snapshot(store)
    await store.mutate(merge())
    assert (await snapshot(store)).cart == before.cart


class TestAnItemOfBothCarts:
    """The target holds 3, and the source 2."""

    @pytest.fixture
    async def rows(self, store: Store) -> tuple[Reservation, Reservation]:
        target, source = await holding(store, KEY, 3), await holding(store, GUEST, 2)
        await store.mutate(merge())
        return target, source

    async def test_the_sources_hold_is_released_once_the_sum_is_granted(
        self, store: Store, engine: Engine, rows: tuple[Reservation, Reservation]
    ) -> None:
        target, source = rows
        superseded = await reservation(engine, source.reservation_id)
        assert (superseded.cart, superseded.superseded_by) == (KEY, target.reservation_id)
        assert (await snapshot(store)).reconciling
        growing = await claim_one(store)
        assert (growing.reservation_id, growing.quantity) == (target.reservation_id, 5)
        assert await claim(store, RELEASE_LANE) == []
        await store.record(answered(growing))
        assert [one.reservation_id for one in await settle_all(store)] == [source.reservation_id]
        assert not (await snapshot(store)).reconciling
        grown = await reservation(engine, target.reservation_id)
        assert (grown.granted_quantity, grown.supersedes) == (5, False)
        await assert_consistent(engine)

    async def test_after_a_refusal_the_hold_is_released_first_and_the_sum_asked_for_once_more(
        self, store: Store, engine: Engine, rows: tuple[Reservation, Reservation]
    ) -> None:
        target, source = rows
        growing = await claim_one(store)
        await store.record(answered(growing, state=Observed.REJECTED, granted_quantity=3, reason="OUT_OF_STOCK"))
        waiting = await reservation(engine, target.reservation_id)
        assert (waiting.waiting, waiting.granted_quantity, waiting.settled) == (True, 3, False)
        # Its own hold is renewed in time, even if the release hangs.
        assert waiting.due_time is not None
        assert waiting.expire_time is not None
        assert waiting.due_time < waiting.expire_time
        assert await claim(store) == []
        released = await claim_one(store, RELEASE_LANE)
        assert released.reservation_id == source.reservation_id
        await store.record(answered(released))
        again = await claim_one(store)
        assert (again.reservation_id, again.quantity) == (target.reservation_id, 5)
        assert again.revision > growing.revision
        await store.record(answered(again, state=Observed.REJECTED, granted_quantity=3, reason="OUT_OF_STOCK"))
        # Once more, and not for ever.
        assert await settle_all(store) == []
        assert not (await snapshot(store)).reconciling

    async def test_an_error_that_no_stock_can_mend_is_not_asked_for_again(
        self, store: Store, engine: Engine, rows: tuple[Reservation, Reservation]
    ) -> None:
        target, source = rows
        growing = await claim_one(store)
        await store.record(RecordOutcome(growing, PermanentFailure("TOO_MANY", "no more than 3"), 0))
        seen = await settle_all(store)
        assert {(one.reservation_id, one.quantity) for one in seen} == {
            (target.reservation_id, 3), (source.reservation_id, 2),
        }  # fmt: skip
        assert (await reservation(engine, target.reservation_id)).seal_reason == "TOO_MANY"

    @pytest.mark.parametrize("command", ["remove", "delete", "operator", "force"])
    async def test_whatever_ends_the_item_releases_both_reservations(
        self, store: Store, engine: Engine, rows: tuple[Reservation, Reservation], command: str
    ) -> None:
        target, source = rows
        growing = await claim_one(store)
        match command:
            case "remove":
                await store.mutate(remove())
            case "delete":
                await store.mutate(mutation(DeleteCart(KEY)))
            case _:
                found = await reservation(engine, target.reservation_id)
                await store.intervene(Release(found, "by hand", force=command == "force"))
        # Late.
        await store.record(answered(growing))
        await settle_all(store)
        for each in (target, source):
            ended = await reservation(engine, each.reservation_id)
            assert (ended.state, ended.superseded_by) == (Observed.RELEASED, "")
        assert not (await snapshot(store)).reconciling
        await assert_consistent(engine)

    async def test_a_changed_quantity_is_decided_before_the_release(
        self, store: Store, engine: Engine, rows: tuple[Reservation, Reservation]
    ) -> None:
        target, source = rows
        growing = await claim_one(store)
        await store.mutate(mutation(UpdateItem(KEY, item_id_of(SKU, {}), ItemUpdate({"quantity"}, 4))))
        await store.record(answered(growing))
        assert (await reservation(engine, source.reservation_id)).disposition is Disposition.HOLD
        await settle_all(store)
        assert (await reservation(engine, source.reservation_id)).state is Observed.RELEASED
        assert (await reservation(engine, target.reservation_id)).granted_quantity == 4

    async def test_an_operator_who_releases_the_superseded_hold_ends_the_wait_for_it(
        self, store: Store, engine: Engine, rows: tuple[Reservation, Reservation]
    ) -> None:
        target, source = rows
        found = await reservation(engine, source.reservation_id)
        await store.intervene(Retry(found, LIMITS))
        await store.intervene(Release(found, "by hand", force=True))
        ended = await reservation(engine, source.reservation_id)
        assert (ended.superseded_by, ended.finish_time is not None) == ("", True)
        await settle_all(store)
        assert (await reservation(engine, target.reservation_id)).granted_quantity == 5
        assert not (await snapshot(store)).reconciling

    async def test_two_more_merges_into_the_item_and_on_into_another_cart_end_with_one_hold(
        self, store: Store, engine: Engine, rows: tuple[Reservation, Reservation]
    ) -> None:
        second, last = cart_key(user_key("second"), "x"), cart_key(user_key("last"), "y")
        others = [await holding(store, second, 7), *rows]
        await store.mutate(merge(second))
        await holding(store, last, 1)
        await store.mutate(merge(KEY, last))
        [line] = (await snapshot(store, last)).lines
        assert line.item.quantity == 3 + 2 + 7 + 1
        await assert_consistent(engine)
        await settle_all(store)
        held = {one.reservation_id: await reservation(engine, one.reservation_id) for one in others}
        [kept] = [row for row in held.values() if row.state is Observed.HELD]
        assert (kept.granted_quantity, kept.cart) == (13, last)
        assert all(row.state in FINAL for row in held.values() if row is not kept)
        assert not (await snapshot(store, last)).reconciling

    async def test_a_chain_of_merges_is_released_in_one_transaction(
        self, store: Store, engine: Engine, rows: tuple[Reservation, Reservation]
    ) -> None:
        last = cart_key(user_key("last"), "y")
        kept = await holding(store, last, 9)
        await store.mutate(merge(KEY, last))
        growing = next(one for one in await claim(store) if one.reservation_id == kept.reservation_id)
        await store.record(answered(growing))
        for each in rows:
            row = await reservation(engine, each.reservation_id)
            assert (row.cart, row.disposition, row.superseded_by) == (last, Disposition.RELEASE, "")

    async def test_the_purge_keeps_a_superseded_reservation_and_its_ended_cart(
        self, store: Store, engine: Engine, rows: tuple[Reservation, Reservation]
    ) -> None:
        await store.purge(Purge(-SECOND, -SECOND, -SECOND, 10))
        assert (await reservation(engine, rows[1].reservation_id)).superseded_by
        await settle_all(store)
        await store.mutate(mutation(DeleteCart(KEY)))
        await settle_all(store)
        await store.purge(Purge(-SECOND, -SECOND, -SECOND, 10))
        await assert_consistent_and_empty(store, engine)


async def assert_consistent_and_empty(store: Store, engine: Engine) -> None:
    dump = await engine.transact(read_dump)
    assert (dump.carts, dump.items, dump.reservations, dump.totals) == ([], [], [], {})


async def test_a_hold_that_may_be_under_way_is_released_at_once_and_waited_for_after_a_refusal(
    store: Store, engine: Engine
) -> None:
    target = await holding(store, KEY, 3)
    await store.mutate(add(quantity=2, key=GUEST))
    source = await claim_one(store)
    await store.mutate(merge())
    released = await claim_one(store, RELEASE_LANE)
    assert (released.reservation_id, released.cart) == (source.reservation_id, KEY)
    growing = await claim_one(store)
    await store.record(answered(growing, state=Observed.REJECTED, granted_quantity=3))
    assert await claim(store) == []
    await store.record(answered(released))
    again = await claim_one(store)
    assert (again.reservation_id, again.quantity) == (target.reservation_id, 5)


async def test_an_item_that_moves_beside_a_release_is_asked_for_once_more_after_a_refusal(store: Store) -> None:
    await holding(store, KEY, 3)
    await store.mutate(remove())
    released = await claim_one(store, RELEASE_LANE)
    await store.mutate(add(quantity=2, key=GUEST))
    await store.mutate(merge())
    moved = await claim_one(store)
    await store.record(answered(moved, state=Observed.REJECTED, granted_quantity=0))
    assert await claim(store) == []
    assert (await snapshot(store)).reconciling
    await store.record(answered(released))
    again = await claim_one(store)
    assert (again.reservation_id, again.quantity) == (moved.reservation_id, 2)


async def test_a_quantity_that_grows_beside_a_release_is_asked_for_once_more_after_a_refusal(store: Store) -> None:
    await holding(store, KEY, 3)
    await store.mutate(add(quantity=2, key=GUEST))
    await store.mutate(merge())
    released = await claim_one(store, RELEASE_LANE)
    await store.record(answered(await claim_one(store)))
    await store.mutate(add(quantity=1))
    growing = await claim_one(store)
    await store.record(answered(growing, state=Observed.REJECTED, granted_quantity=5))
    assert await claim(store) == []
    await store.record(answered(released))
    assert (await claim_one(store)).quantity == 6


async def test_the_next_cart_under_the_sources_name_does_not_wait_for_what_has_left_it(
    store: Store, engine: Engine, idle: WriteQueue
) -> None:
    await holding(store, KEY, 3)
    await store.mutate(add(quantity=2, key=GUEST))
    answers = [idle.submit(merge()), idle.submit(add(quantity=1, key=GUEST))]
    await idle.start()
    await asyncio.gather(*answers)
    await idle.close()
    [line] = (await snapshot(store, GUEST)).lines
    assert not line.reservation.waiting


async def test_a_waiting_item_is_still_woken_after_it_has_moved(store: Store, engine: Engine) -> None:
    await holding(store, GUEST, 2)
    await store.mutate(remove(key=GUEST))
    old = await claim_one(store, RELEASE_LANE)
    await store.mutate(add(quantity=1, key=GUEST))
    await store.mutate(merge())
    # Dropped: it names the old cart.
    await store.record(answered(old))
    assert await claim(store) == []
    await release_all(store)
    assert (await claim_one(store)).quantity == 1


@guests
async def test_an_operator_reaches_a_reservation_that_moves_in_the_same_batch(
    store: Store, engine: Engine, guest: CartKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed = await holding(store, guest, 2)
    operator = OperatorActions(store, LIMITS, None)
    real = store.intervene
    commands: list[object] = []

    async def merge_first(command: Any) -> Any:
        if not commands:
            await store.mutate(merge(guest))
        commands.append(command)
        return await real(command)

    monkeypatch.setattr(store, "intervene", merge_first)
    await operator.release(claimed.reservation_id, "their ticket 17", force=False)
    assert len(commands) == 2
    assert (await reservation(engine, claimed.reservation_id)).disposition is Disposition.RELEASE


async def test_a_stored_reply_is_kept_beyond_the_users_limit_but_not_for_a_merge_without_effect(
    store: Store, engine: Engine
) -> None:
    await store.mutate(add(quantity=2, key=GUEST))
    full = Limits(max_user_bytes=1)
    reply = await store.mutate(merge(limits=full, request_id="first", fingerprint=b"1"))
    assert await store.mutate(merge(limits=full, request_id="first", fingerprint=b"1")) == reply
    before = (await engine.transact(_read_replies), await snapshot(store))
    await store.mutate(merge(limits=full, request_id="second", fingerprint=b"2"))
    after = (await engine.transact(_read_replies), await snapshot(store))
    assert (before[0], before[1].cart) == (after[0], after[1].cart)
    await assert_consistent(engine)


def _read_replies(connection: Any) -> Any:
    return read_dump(connection).replies
