"""The erasure of a user, step by step, on both databases."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from cartgrpc.v1.cart_service_pb2 import MergeCartsResponse
from sqlalchemy import LargeBinary, Text, select

from cart_grpc.admin import OperatorActions
from cart_grpc.background.erasure import erase
from cart_grpc.carts.calls import MergeCarts
from cart_grpc.carts.checkout_refusals import CheckoutNotFound, UserErasing
from cart_grpc.carts.model import CartState, CheckoutState
from cart_grpc.commands.direct import EraseRows
from cart_grpc.commands.mutation import Mutation
from cart_grpc.names import CartKey, UserKey, cart_key, user_key
from cart_grpc.protocol.lanes import HOLD_LANE, RELEASE_LANE
from cart_grpc.protocol.reservation import Disposition, Observed, Reservation
from cart_grpc.rpc.mutation_replies import MERGE_CARTS
from cart_grpc.store import schema
from cart_grpc.store.engine import Engine
from cart_grpc.store.store import Store
from tests.store.checkouts import begin as start_checkout
from tests.store.checkouts import begun, cancel, claim_of_checkout, complete, sold
from tests.store.writes import KEY, LIMITS, add, answered, claim, clear, overwrite, remove, snapshot

USER = user_key("erika-1")
CARTS = [cart_key(USER, "default"), cart_key(USER, "wishes")]
OTHER = cart_key(user_key("bob"), "default")
CHECKOUT_ID = "01900000-0000-7000-8000-000000000000"


@pytest.fixture
def operator(store: Store) -> OperatorActions:
    return OperatorActions(store, LIMITS, None)


async def begin(operator: OperatorActions) -> None:
    assert (await operator.erase_user(USER, progress_only=False)).begin_time is not None


async def erase_all(store: Store, user: UserKey = USER) -> int:
    """Make steps until one does nothing. Returns the number of steps that did something."""
    steps = 0
    while await erase(store, user):
        steps += 1
        assert steps < 1_000
    return steps


async def answer_all(store: Store) -> None:
    """The Reservation API grants and releases everything."""
    for lane in (HOLD_LANE, RELEASE_LANE):
        while claimed := await claim(store, lane):
            for one in claimed:
                await store.record(answered(one))


async def find_texts(engine: Engine, wanted: str = USER.user_id) -> set[str]:
    """The columns of all tables in which `wanted` occurs, also within bytes."""

    def search(connection: Any) -> set[str]:
        found = set()
        for table in schema.metadata.sorted_tables:
            texts = [column for column in table.columns if isinstance(column.type, Text | LargeBinary)]
            for row in connection.execute(select(*texts)) if texts else ():
                for column, value in zip(texts, row, strict=True):
                    if wanted in (value.decode("latin-1") if isinstance(value, bytes) else value or ""):
                        found.add(f"{table.name}.{column.name}")
        return found

    return await engine.transact(search)


async def fill(store: Store, engine: Engine) -> None:
    """A user with two carts, held, pending, released and rejected items, replies, and a finished checkout."""
    for key in CARTS:
        for number in range(3):
            await store.mutate(add(f"sku-{number}", key=key, request_id=f"{key.cart_id}-{number}"))
    await store.mutate(add("gone", key=CARTS[0]))
    await answer_all(store)
    await store.mutate(remove("gone", CARTS[0]))
    await answer_all(store)
    await store.mutate(add("pending", key=CARTS[1]))
    await insert_checkout(engine, CheckoutState.COMPLETED)


async def insert_checkout(engine: Engine, state: CheckoutState) -> None:
    """A checkout of the user with one item, and the item's reservation, which is sold."""

    def insert(connection: Any) -> None:
        names = {"checkout_id": CHECKOUT_ID, "user_id": USER.user_id, "slice": USER.slice, "cart_id": "default"}
        for table, more in (
            (schema.checkouts, {"state": int(state), "is_ready": False}),
            (schema.checkout_items, {"item_id": "i", "reservation_id": "r", "quantity": 1}),
            (
                schema.reservations,
                {"reservation_id": "r", "disposition": 2, "state": 3, "quantity": 1, "finish_time": 1, "revision": 1,
                 "intent_revision": 1, "observed_revision": 1, "waiting": False, "supersedes": False},
            ),
        ):  # fmt: skip
            row: dict[str, Any] = {
                column.name: "" if isinstance(column.type, Text) else 0
                for column in table.columns
                if not column.nullable
            }
            connection.execute(table.insert().values({**row, **names, **more}))

    await engine.shard_of(USER.slice).transact(insert)


async def test_nothing_of_an_erased_user_is_left_in_any_table_and_the_user_begins_anew(
    store: Store, engine: Engine, operator: OperatorActions
) -> None:
    await fill(store, engine)
    await store.mutate(add(key=OTHER, request_id="theirs"))
    await answer_all(store)
    other = (await snapshot(store, OTHER)).cart
    await overwrite(engine, schema.carts, schema.carts.c.user_id == "bob", state=6, merged_into=CARTS[0].name)
    assert len(await find_texts(engine)) >= 7
    await begin(operator)
    await erase_all(store)
    seen = await operator.erase_user(USER, progress_only=True)
    # The pending one was released, too: its message may be on its way.
    assert (seen.cart_count, seen.unreleased_count) == (2, 7)
    await answer_all(store)
    await erase_all(store)
    assert await find_texts(engine) == set()
    seen = await operator.erase_user(USER, progress_only=False)
    assert (seen.begin_time, seen.is_stored) == (None, False)
    assert await find_texts(engine) == set()
    assert await find_texts(engine, "theirs") == {"replies.request_id"}
    after = await snapshot(store, OTHER)
    assert (after.cart.merged_into, after.cart.revision, after.cart.etag) == ("", other.revision + 1, other.etag)
    assert len(after.lines) == 1
    await store.mutate(add(key=CARTS[0]))
    assert (await snapshot(store, CARTS[0])).cart.revision == 1
    assert (await operator.erase_user(USER, progress_only=True)).begin_time is None


async def test_a_user_for_whom_nothing_is_stored_is_done_and_gets_no_row(
    store: Store, engine: Engine, operator: OperatorActions
) -> None:
    for progress_only in (True, False):
        seen = await operator.erase_user(USER, progress_only=progress_only)
        assert (seen.begin_time, seen.is_stored) == (None, False)
    assert await find_texts(engine) == set()
    await overwrite_merged_cart(store, engine)
    assert (await operator.erase_user(USER, progress_only=True)).begin_time is None
    await begin(operator)
    await erase_all(store)
    assert await find_texts(engine) == set()


async def overwrite_merged_cart(store: Store, engine: Engine) -> None:
    """Another user's cart was merged into a cart of the user that was purged long ago."""
    await store.mutate(add(key=OTHER))
    await overwrite(engine, schema.carts, schema.carts.c.user_id == "bob", state=6, merged_into=CARTS[0].name)


async def test_changes_by_the_user_are_refused_meanwhile_and_replays_and_others_are_served(
    store: Store, operator: OperatorActions
) -> None:
    first = add(key=CARTS[0], request_id="first")
    reply = await store.mutate(first)
    await begin(operator)
    for change in (add(key=CARTS[0]), add(key=cart_key(USER, "new")), clear(CARTS[0]), remove(key=CARTS[0])):
        with pytest.raises(UserErasing, match="users/erika-1 is being erased"):
            await store.mutate(change)
    assert await store.mutate(first) == reply
    await store.mutate(add(key=OTHER))
    assert (await snapshot(store, CARTS[0])).cart.state is CartState.ACTIVE
    await erase_all(store)
    assert (await snapshot(store, CARTS[0])).cart.state is CartState.DELETED


@pytest.mark.parametrize("state", [CheckoutState.OPEN, CheckoutState.COMPLETING, CheckoutState.FAILED])
async def test_a_running_checkout_finishes_first(
    store: Store, engine: Engine, operator: OperatorActions, state: CheckoutState
) -> None:
    await store.mutate(add(key=CARTS[0]))
    await insert_checkout(engine, state)
    await begin(operator)
    seen = await operator.erase_user(USER, progress_only=True)
    assert [checkout.name for checkout in seen.blocking] == [f"{USER.name}/checkouts/{CHECKOUT_ID}"]
    assert await erase_all(store) == 0
    # Also if a step comes that another process decided on before: it deletes nothing of a running checkout.
    await store.erase_rows(EraseRows(USER, 10))
    assert {"checkouts.user_id", "checkout_items.user_id", "users.user_id"} <= await find_texts(engine)
    assert (await snapshot(store, CARTS[0])).cart.state is CartState.ACTIVE
    await overwrite(engine, schema.checkouts, state=int(CheckoutState.CANCELLED))
    await erase_all(store)
    await answer_all(store)
    await erase_all(store)
    assert await find_texts(engine) == set()


@pytest.mark.parametrize("end", [complete, cancel])
async def test_a_checkout_can_still_be_completed_or_cancelled_and_its_reply_goes_too(
    store: Store, engine: Engine, operator: OperatorActions, end: Any
) -> None:
    key = await begun(store, "kettle", "tea")
    await operator.erase_user(KEY.user, progress_only=False)
    for change in (start_checkout(), add("filters")):
        with pytest.raises(UserErasing):
            await store.mutate(change)
    assert await erase_all(store, KEY.user) == 0
    await store.mutate(end(key, request_id="the end"))
    for claimed in await claim_of_checkout(store):
        await store.record(sold(claimed))
    await erase_all(store, KEY.user)
    await answer_all(store)
    await erase_all(store, KEY.user)
    assert await find_texts(engine, "alice") == set()
    with pytest.raises(CheckoutNotFound):
        await store.mutate(end(key))
    assert await find_texts(engine, "alice") == set()


async def test_the_reply_and_the_rows_of_a_merge_into_another_users_cart_do_not_keep_the_name(
    store: Store, engine: Engine, operator: OperatorActions
) -> None:
    call = MergeCarts(OTHER, CARTS[0], request_id="merge")
    merge = Mutation(call, MERGE_CARTS.encode, LIMITS)
    for key in (CARTS[0], OTHER):
        await store.mutate(add("kettle", LIMITS.max_quantity_per_item, key))
        await store.mutate(add("tea", key=key))
    await answer_all(store)
    await begin(operator)
    for refused in (merge, replace(merge, call=MergeCarts(CARTS[1], OTHER))):
        with pytest.raises(UserErasing, match=USER.name):
            await store.mutate(refused)
    await overwrite(engine, schema.users, erase_time=None)
    reply = MergeCartsResponse.FromString(await store.mutate(merge))
    assert [one.source_item.sku for one in reply.adjustments] == ["kettle"]
    await begin(operator)
    await erase_all(store)
    await answer_all(store)
    await erase_all(store)
    assert await find_texts(engine) == set()
    assert await find_texts(engine, "merge") == {"replies.request_id"}


async def test_several_sweepers_at_once_and_a_retry_by_an_operator_do_no_harm(
    store: Store, engine: Engine, operator: OperatorActions
) -> None:
    await fill(store, engine)
    await answer_all(store)
    await store.mutate(add("sold-out", key=CARTS[0]))
    [rejected] = await claim(store)
    await store.record(answered(rejected, state=Observed.REJECTED, granted_quantity=0, expire_time=None))
    await begin(operator)
    # While the user is erased, nothing is asked for again.
    assert (await operator.retry(rejected.reservation_id)).reservation.reservation_id == rejected.reservation_id
    for _ in range(100):
        await asyncio.gather(*(erase(store, USER) for _ in range(4)), answer_all(store))
        if await find_texts(engine) == set():
            break
    else:
        pytest.fail("the erasure does not end")


async def test_rows_are_deleted_in_small_steps_that_can_stop_anywhere_and_run_in_any_number_of_processes(
    store: Store, engine: Engine, operator: OperatorActions
) -> None:
    await fill(store, engine)
    await begin(operator)
    await erase_all(store)
    await answer_all(store)
    deleted, steps = 1, 0
    while deleted:
        deleted = await store.erase_rows(EraseRows(USER, 2))
        assert deleted <= 2 * 6
        steps += 1
        left = await operator.erase_user(USER, progress_only=True)
        # The mark goes last: while it is there, the erasure goes on.
        assert (left.begin_time is None) == (await find_texts(engine) == set())
    assert steps > 4
    assert await find_texts(engine) == set()


async def test_the_last_step_leaves_the_row_of_a_user_with_an_unfinished_reservation_and_of_one_who_is_not_erased(
    store: Store, engine: Engine, operator: OperatorActions
) -> None:
    await store.mutate(add(key=CARTS[0]))
    assert await store.erase_rows(EraseRows(USER, 100)) == 0
    await begin(operator)
    await erase_all(store)
    assert await store.erase_rows(EraseRows(USER, 100)) > 0
    assert await store.erase_rows(EraseRows(USER, 100)) == 0
    assert {"users.user_id", "reservations.user_id"} <= await find_texts(engine)


@pytest.mark.parametrize("rows", [
    {"set_aside_reason": "why", "due_time": None},
    {"attempt_count": 9},
], ids=str)  # fmt: skip
async def test_a_release_that_never_comes_blocks_until_an_operator_forces_it_and_its_late_answer_leaves_nothing(
    store: Store, engine: Engine, operator: OperatorActions, rows: dict[str, Any]
) -> None:
    await store.mutate(add(key=CARTS[0]))
    await begin(operator)
    await erase_all(store)
    late: Sequence[Reservation] = await claim(store, RELEASE_LANE)
    await overwrite(engine, schema.reservations, **rows)
    assert await erase_all(store) == 0
    assert (await operator.erase_user(USER, progress_only=True)).unreleased_count == 1
    await operator.release(late[0].reservation_id, "stuck", force=True)
    await erase_all(store)
    await store.record(answered(late[0]))
    assert await find_texts(engine) == set()


async def test_every_unfinished_reservation_counts(store: Store, engine: Engine, operator: OperatorActions) -> None:
    table = schema.reservations
    await store.mutate(add(key=CARTS[0]))
    await answer_all(store)
    # Released, and to be looked up again, as under the `basic` contract; a commit; and a superseded hold.
    for change in (
        {"disposition": int(Disposition.RELEASE), "state": 4},
        {"disposition": int(Disposition.COMMIT), "checkout_id": CHECKOUT_ID},
        {"superseded_by": "another"},
    ):
        before = {"disposition": 1, "state": 1, "checkout_id": "", "superseded_by": "", **change}
        await overwrite(engine, table, **before)
        await engine.transact(lambda connection: connection.execute(schema.items.delete()))
        assert (await operator.erase_user(USER, progress_only=True)).unreleased_count == 1, change
    await overwrite(engine, table, finish_time=1)
    assert (await operator.erase_user(USER, progress_only=True)).unreleased_count == 0


async def test_a_call_that_finds_nothing_leaves_no_row_of_its_user(store: Store, engine: Engine) -> None:
    key = CartKey(USER.slice, USER.user_id, "none")
    with pytest.raises(Exception, match="was not found"):
        await store.mutate(clear(key))
    assert await find_texts(engine) == set()
