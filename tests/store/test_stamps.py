"""A stamp tells whether a cart is as it was read: whatever changes it is noticed, what nobody changed is not read."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
from cartgrpc.v1 import cart_service_pb2

from cart_grpc import app
from cart_grpc.carts.progress import HOLD_MARGIN_US
from cart_grpc.carts.refusals import CartNotFound
from cart_grpc.commands.direct import Purge, ReturnClaims
from cart_grpc.commands.operator import Release, Retry
from cart_grpc.commands.record import RecordOutcome
from cart_grpc.names import CartKey, cart_key, user_key
from cart_grpc.protocol.reservation import Decision, Observed, StaleRevision
from cart_grpc.rpc.replies import Replies
from cart_grpc.store import schema
from cart_grpc.store.engine import Engine
from cart_grpc.store.read.cart_json import STAMP_AGE, UNCHANGED, CacheValidator, CartJson, Found
from cart_grpc.store.read.carts import Reads
from cart_grpc.store.store import Store
from tests.store.writes import (
    HOUR,
    KEY,
    SECOND,
    TERMS,
    add,
    answered,
    claim_one,
    clear,
    decided,
    overwrite,
    release_all,
    remove,
    row_of,
    silent,
    snapshot,
)

Change = Callable[[Store, Engine], Awaitable[Any]]


async def read(store: Store) -> CartJson:
    found = await store.reads.find_json(KEY)
    assert isinstance(found, CartJson)
    return found


async def stamp_of(store: Store) -> CacheValidator:
    stamp = (await read(store)).stamp
    assert stamp
    return stamp


async def renewed_in_vain(store: Store, engine: Engine) -> Any:
    """A hold whose renewal was not answered and is tried again later: the claim that was made for it."""
    await decided(store)
    await overwrite(engine, schema.reservations, due_time=0)
    renewal = await claim_one(store)
    await store.record(silent(renewal, HOUR))
    return renewal


async def test_what_nobody_changed_is_not_read_again(store: Store) -> None:
    await decided(store, Observed.HELD, "a")
    await decided(store, Observed.HELD, "b")
    stamp = await stamp_of(store)
    for _ in range(2):
        assert await store.reads.find_json(KEY, stamp) is UNCHANGED
    assert len((await read(store)).lines) == 2


async def test_an_empty_cart_has_a_stamp_too(store: Store) -> None:
    await decided(store)
    await store.mutate(clear())
    assert await store.reads.find_json(KEY, await stamp_of(store)) is UNCHANGED


async def test_one_who_shows_an_old_stamp_or_none_is_given_the_cart_beside_one_who_needs_it_not(store: Store) -> None:
    await decided(store)
    old = await stamp_of(store)
    await store.mutate(add("another"))
    await store.record(answered(await claim_one(store)))
    stamp = await stamp_of(store)
    found = [await store.reads.find_json(KEY, one) for one in (old, stamp, None)]
    assert found[1] is UNCHANGED
    assert found[0]
    assert found[2]
    assert isinstance(found[0], CartJson)
    assert isinstance(found[2], CartJson)
    assert found[0].lines == found[2].lines


async def expire(store: Store, engine: Engine) -> None:
    await overwrite(engine, schema.carts, update_time=0, ttl_us=1)
    assert await store.expire(KEY)


CHANGES: dict[str, Change] = {
    "the same item is added": lambda store, _: store.mutate(add()),
    "another item is added": lambda store, _: store.mutate(add("another")),
    "the item is removed": lambda store, _: store.mutate(remove()),
    "the cart is cleared": lambda store, _: store.mutate(clear()),
    "the cart expires": expire,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_whatever_is_done_to_a_cart_is_noticed(store: Store, engine: Engine, change: Change) -> None:
    await decided(store)
    stamp = await stamp_of(store)
    await change(store, engine)
    assert await store.reads.find_json(KEY, stamp) is not UNCHANGED


async def test_a_cart_that_came_to_the_revision_of_a_purged_one_is_another(store: Store, engine: Engine) -> None:
    await decided(store)
    stamp = await stamp_of(store)
    await store.mutate(remove())
    await expire(store, engine)
    await release_all(store)
    assert await store.purge(Purge(0, 0, 0, 100))
    assert await store.reads.find_json(KEY) is None
    await decided(store)
    revisions = [one.version.split(":")[1] for one in (stamp, await stamp_of(store))]
    assert revisions[0] == revisions[1]
    assert await store.reads.find_json(KEY, stamp) is not UNCHANGED


async def test_a_late_answer_to_a_renewal_is_noticed_though_only_its_expire_time_is_new(
    store: Store, engine: Engine
) -> None:
    renewal = await renewed_in_vain(store, engine)
    stamp = await stamp_of(store)
    before = await row_of(engine, renewal.reservation_id)
    await store.record(answered(renewal, expire_time=app.clock() + 5 * HOUR))
    after = await row_of(engine, renewal.reservation_id)
    assert before.expire_time < after.expire_time
    assert await store.reads.find_json(KEY, stamp) is not UNCHANGED


async def test_a_late_answer_to_a_release_that_no_line_shows_is_noticed(store: Store) -> None:
    await decided(store)
    await store.mutate(remove())
    release = await claim_one(store, "release")
    await store.record(silent(release, HOUR))
    stamp = await stamp_of(store)
    assert (await snapshot(store)).reconciling
    await store.record(answered(release))
    assert await store.reads.find_json(KEY, stamp) is not UNCHANGED
    assert not (await snapshot(store)).reconciling


async def test_what_somebody_else_has_said_of_a_hold_is_noticed_though_nobody_has_claimed_it(
    store: Store, engine: Engine
) -> None:
    renewal = await renewed_in_vain(store, engine)
    stamp = await stamp_of(store)
    current = Decision(renewal.reservation_id, renewal.revision + 5, Observed.HELD, 1, app.clock() + HOUR, "")
    await store.record(RecordOutcome(renewal, StaleRevision(current), 0))
    assert await store.reads.find_json(KEY, stamp) is not UNCHANGED


async def test_a_hold_that_is_found_to_have_run_out_is_noticed_even_if_the_clock_is_set_back(
    store: Store, engine: Engine
) -> None:
    await decided(store, expire_time=app.clock() + 100 * SECOND)
    stamp = await stamp_of(store)
    lapsed = app.clock() + HOLD_MARGIN_US
    await overwrite(engine, schema.reservations, due_time=0, expire_time=lapsed)
    await store.record(answered(await claim_one(store), state=Observed.EXPIRED, granted_quantity=0, expire_time=lapsed))
    assert await store.reads.find_json(KEY, stamp) is not UNCHANGED


async def test_an_operator_who_has_what_was_put_off_tried_again_is_noticed(store: Store) -> None:
    await store.mutate(add())
    claimed = await claim_one(store)
    await store.record(silent(claimed, HOUR))
    stamp = await stamp_of(store)
    assert await store.reads.find_json(KEY, stamp) is UNCHANGED
    await store.intervene(Retry(claimed, TERMS))
    assert await store.reads.find_json(KEY, stamp) is not UNCHANGED


@pytest.mark.parametrize("force", [False, True])
async def test_an_operator_who_gives_it_back_is_noticed(store: Store, *, force: bool) -> None:
    claimed = await decided(store)
    stamp = await stamp_of(store)
    await store.intervene(Release(claimed, "over", force=force))
    assert await store.reads.find_json(KEY, stamp) is not UNCHANGED


async def test_what_waited_for_a_release_is_noticed_when_it_goes_on(store: Store) -> None:
    await decided(store)
    await store.mutate(remove())
    await store.mutate(add())
    stamp = await stamp_of(store)
    assert await store.reads.find_json(KEY, stamp) is UNCHANGED
    await release_all(store)
    assert await store.reads.find_json(KEY, stamp) is not UNCHANGED


async def test_what_waited_for_another_look_at_what_was_released_is_noticed_when_it_goes_on(
    store: Store, engine: Engine
) -> None:
    claimed = await decided(store)
    await store.intervene(Release(claimed, "over", force=False))
    await store.record(answered(await claim_one(store, "release")))
    # As under the `basic` contract, which lets nothing rest that was ever attempted.
    await overwrite(engine, schema.reservations, due_time=0)
    look = await claim_one(store, "release")
    await store.mutate(add())
    (line,) = (await snapshot(store)).lines
    # For a release that is over, though its latest revision is not answered yet.
    waits = schema.reservations.c.reservation_id == line.reservation.reservation_id
    await overwrite(engine, schema.reservations, waits, waiting=True, due_time=None)
    stamp = await stamp_of(store)
    assert await store.reads.find_json(KEY, stamp) is UNCHANGED
    await store.record(answered(look))
    assert await store.reads.find_json(KEY, stamp) is not UNCHANGED
    assert await claim_one(store)


async def test_what_can_be_claimed_or_is_has_no_stamp(store: Store) -> None:
    await store.mutate(add())
    assert (await read(store)).stamp is None
    claimed = await claim_one(store)
    assert (await read(store)).stamp is None
    await store.update_leases(ReturnClaims([claimed]))
    assert (await read(store)).stamp is None
    await store.record(silent(await claim_one(store), HOUR))
    assert await stamp_of(store)


async def test_a_stamp_ends_when_the_first_of_all_lines_may_be_claimed(store: Store, engine: Engine) -> None:
    await decided(store, Observed.HELD, "far")
    near = await decided(store, Observed.HELD, "near", expire_time=app.clock() + 40 * SECOND)
    stamp = await stamp_of(store)
    assert stamp.until == (await row_of(engine, near.reservation_id)).due_time


async def test_a_stamp_ends_when_a_hold_is_not_shown_any_more(store: Store, engine: Engine) -> None:
    await decided(store)
    end = app.clock() + 30 * SECOND
    await overwrite(engine, schema.reservations, expire_time=end + HOLD_MARGIN_US)
    assert (await stamp_of(store)).until == end
    await overwrite(engine, schema.reservations, due_time=None)
    assert (await stamp_of(store)).until == end


async def test_a_stamp_ends_after_a_while_for_what_was_changed_by_hand(store: Store) -> None:
    await decided(store, Observed.REJECTED)
    found = await read(store)
    assert found.stamp
    assert found.stamp.until == found.now + STAMP_AGE
    await decided(store, Observed.HELD, "another")
    found = await read(store)
    assert found.stamp
    assert found.stamp.until == found.now + STAMP_AGE


async def test_a_stamp_that_has_ended_is_worth_nothing(store: Store) -> None:
    await decided(store)
    stamp = await stamp_of(store)
    assert isinstance(await store.reads.find_json(KEY, stamp._replace(until=app.clock() - 10 * SECOND)), CartJson)


async def test_many_who_ask_at_once_are_told_each_by_his_own_stamp(store: Store) -> None:
    await decided(store)
    stamp = await stamp_of(store)
    find = partial(store.reads.find_json, KEY)
    found = await asyncio.gather(find(stamp), find(), find(CacheValidator("", stamp.until)), find(stamp))
    assert [one is UNCHANGED for one in found] == [True, False, False, True]


class Counted(Reads):
    """Reads, and how many carts were read for want of a stamp that held."""

    count = 0

    async def find_json(self, key: CartKey, stamp: CacheValidator | None = None) -> Found:
        found = await super().find_json(key, stamp)
        self.count += isinstance(found, CartJson)
        return found


async def test_a_reply_is_given_again_until_something_changes(store: Store, engine: Engine) -> None:
    await decided(store, Observed.HELD, "a")
    reads = Counted(engine)
    replies = Replies(reads)
    first = await replies.get_cart(KEY)
    assert await replies.get_cart(KEY) == first
    assert reads.count == 1
    await decided(store, Observed.HELD, "b")
    second = cart_service_pb2.GetCartResponse.FromString(await replies.get_cart(KEY)).cart
    assert [item.sku for item in second.items] == ["a", "b"]
    assert reads.count == 2


async def test_a_reply_for_which_there_is_no_room_is_made_each_time_and_older_ones_go(
    store: Store, engine: Engine
) -> None:
    await decided(store)
    other = cart_key(user_key("bob"), "default")
    await store.mutate(add(key=other))
    await store.record(answered(await claim_one(store)))
    one = len(await Replies(Reads(engine)).get_cart(KEY))
    for size, expected in ((one, 4), (one + 1_000, 4), (2 * (one + 1_000), 2)):
        reads = Counted(engine)
        replies = Replies(reads, size)
        for key in (KEY, other, KEY, other):
            found = cart_service_pb2.GetCartResponse.FromString(await replies.get_cart(key)).cart
            assert found.name == key.name
        assert reads.count == expected


async def test_a_cart_that_is_gone_is_not_remembered(store: Store, engine: Engine) -> None:
    await decided(store)
    replies = Replies(store.reads)
    await replies.get_cart(KEY)
    await store.mutate(remove())
    await expire(store, engine)
    await release_all(store)
    assert await store.purge(Purge(0, 0, 0, 100))
    with pytest.raises(CartNotFound):
        await replies.get_cart(KEY)
