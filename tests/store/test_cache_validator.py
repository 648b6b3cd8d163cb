"""Cache validators: every change of a cart makes its validator invalid, and an unchanged cart is not read again."""

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
from cart_grpc.rpc.get_cart_cache import GetCartCache
from cart_grpc.store import schema
from cart_grpc.store.engine import Engine
from cart_grpc.store.read.cache_validator import MAX_AGE_US, CacheValidator
from cart_grpc.store.read.cart_json import NOT_MODIFIED, CartJson, Found
from cart_grpc.store.read.reads import Reads
from cart_grpc.store.store import Store
from tests.store.writes import (
    HOUR,
    KEY,
    LIMITS,
    SECOND,
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


async def validator_of(store: Store) -> CacheValidator:
    validator = (await read(store)).validator
    assert validator
    return validator


async def with_unanswered_renewal(store: Store, engine: Engine) -> Any:
    """Make a hold whose renewal was not answered and is due again later. Return the renewal's claim."""
    await decided(store)
    await overwrite(engine, schema.reservations, due_time=0)
    renewal = await claim_one(store)
    await store.record(silent(renewal, HOUR))
    return renewal


async def test_an_unchanged_cart_is_not_modified(store: Store) -> None:
    await decided(store, Observed.HELD, "a")
    await decided(store, Observed.HELD, "b")
    validator = await validator_of(store)
    for _ in range(2):
        assert await store.reads.find_json(KEY, validator) is NOT_MODIFIED
    assert len((await read(store)).lines) == 2


async def test_an_empty_cart_has_a_validator(store: Store) -> None:
    await decided(store)
    await store.mutate(clear())
    assert await store.reads.find_json(KEY, await validator_of(store)) is NOT_MODIFIED


async def test_readers_with_an_old_validator_or_none_get_the_cart(store: Store) -> None:
    await decided(store)
    old = await validator_of(store)
    await store.mutate(add("another"))
    await store.record(answered(await claim_one(store)))
    validator = await validator_of(store)
    found = [await store.reads.find_json(KEY, one) for one in (old, validator, None)]
    assert found[1] is NOT_MODIFIED
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
async def test_a_callers_change_invalidates_the_validator(store: Store, engine: Engine, change: Change) -> None:
    await decided(store)
    validator = await validator_of(store)
    await change(store, engine)
    assert await store.reads.find_json(KEY, validator) is not NOT_MODIFIED


async def test_a_new_cart_with_the_revision_of_a_purged_one_is_modified(store: Store, engine: Engine) -> None:
    await decided(store)
    validator = await validator_of(store)
    await store.mutate(remove())
    await expire(store, engine)
    await release_all(store)
    assert await store.purge(Purge(0, 0, 0, 100))
    assert await store.reads.find_json(KEY) is None
    await decided(store)
    revisions = [one.version.split(":")[1] for one in (validator, await validator_of(store))]
    assert revisions[0] == revisions[1]
    assert await store.reads.find_json(KEY, validator) is not NOT_MODIFIED


async def test_a_late_answer_that_only_extends_the_hold_invalidates_the_validator(store: Store, engine: Engine) -> None:
    renewal = await with_unanswered_renewal(store, engine)
    validator = await validator_of(store)
    before = await row_of(engine, renewal.reservation_id)
    await store.record(answered(renewal, expire_time=app.clock() + 5 * HOUR))
    after = await row_of(engine, renewal.reservation_id)
    assert before.expire_time < after.expire_time
    assert await store.reads.find_json(KEY, validator) is not NOT_MODIFIED


async def test_a_late_answer_to_a_removed_items_release_invalidates_the_validator(store: Store) -> None:
    await decided(store)
    await store.mutate(remove())
    release = await claim_one(store, "release")
    await store.record(silent(release, HOUR))
    validator = await validator_of(store)
    assert (await snapshot(store)).reconciling
    await store.record(answered(release))
    assert await store.reads.find_json(KEY, validator) is not NOT_MODIFIED
    assert not (await snapshot(store)).reconciling


async def test_a_decision_at_a_higher_revision_for_an_unclaimed_hold_invalidates_the_validator(
    store: Store, engine: Engine
) -> None:
    renewal = await with_unanswered_renewal(store, engine)
    validator = await validator_of(store)
    current = Decision(renewal.reservation_id, renewal.revision + 5, Observed.HELD, 1, app.clock() + HOUR, "")
    await store.record(RecordOutcome(renewal, StaleRevision(current), 0))
    assert await store.reads.find_json(KEY, validator) is not NOT_MODIFIED


async def test_an_expired_answer_invalidates_the_validator_even_if_the_clock_is_set_back(
    store: Store, engine: Engine
) -> None:
    await decided(store, expire_time=app.clock() + 100 * SECOND)
    validator = await validator_of(store)
    lapsed = app.clock() + HOLD_MARGIN_US
    await overwrite(engine, schema.reservations, due_time=0, expire_time=lapsed)
    await store.record(answered(await claim_one(store), state=Observed.EXPIRED, granted_quantity=0, expire_time=lapsed))
    assert await store.reads.find_json(KEY, validator) is not NOT_MODIFIED


async def test_an_operators_retry_invalidates_the_validator(store: Store) -> None:
    await store.mutate(add())
    claimed = await claim_one(store)
    await store.record(silent(claimed, HOUR))
    validator = await validator_of(store)
    assert await store.reads.find_json(KEY, validator) is NOT_MODIFIED
    await store.intervene(Retry(claimed, LIMITS))
    assert await store.reads.find_json(KEY, validator) is not NOT_MODIFIED


@pytest.mark.parametrize("force", [False, True])
async def test_an_operators_release_invalidates_the_validator(store: Store, *, force: bool) -> None:
    claimed = await decided(store)
    validator = await validator_of(store)
    await store.intervene(Release(claimed, "over", force=force))
    assert await store.reads.find_json(KEY, validator) is not NOT_MODIFIED


async def test_the_end_of_a_wait_for_a_release_invalidates_the_validator(store: Store) -> None:
    await decided(store)
    await store.mutate(remove())
    await store.mutate(add())
    validator = await validator_of(store)
    assert await store.reads.find_json(KEY, validator) is NOT_MODIFIED
    await release_all(store)
    assert await store.reads.find_json(KEY, validator) is not NOT_MODIFIED


async def test_the_end_of_a_wait_for_a_second_look_at_a_release_invalidates_the_validator(
    store: Store, engine: Engine
) -> None:
    claimed = await decided(store)
    await store.intervene(Release(claimed, "over", force=False))
    await store.record(answered(await claim_one(store, "release")))
    # As under the `basic` contract, which looks up a released reservation once more.
    await overwrite(engine, schema.reservations, due_time=0)
    look = await claim_one(store, "release")
    await store.mutate(add())
    (line,) = (await snapshot(store)).lines
    # It waits for a confirmed release whose latest revision has no answer yet.
    waits = schema.reservations.c.reservation_id == line.reservation.reservation_id
    await overwrite(engine, schema.reservations, waits, waiting=True, due_time=None)
    validator = await validator_of(store)
    assert await store.reads.find_json(KEY, validator) is NOT_MODIFIED
    await store.record(answered(look))
    assert await store.reads.find_json(KEY, validator) is not NOT_MODIFIED
    assert await claim_one(store)


async def test_a_cart_with_a_due_or_claimed_line_has_no_validator(store: Store) -> None:
    await store.mutate(add())
    assert (await read(store)).validator is None
    claimed = await claim_one(store)
    assert (await read(store)).validator is None
    await store.update_leases(ReturnClaims([claimed]))
    assert (await read(store)).validator is None
    await store.record(silent(await claim_one(store), HOUR))
    assert await validator_of(store)


async def test_a_validator_ends_when_the_first_line_becomes_due(store: Store, engine: Engine) -> None:
    await decided(store, Observed.HELD, "far")
    near = await decided(store, Observed.HELD, "near", expire_time=app.clock() + 40 * SECOND)
    validator = await validator_of(store)
    assert validator.until == (await row_of(engine, near.reservation_id)).due_time


async def test_a_validator_ends_when_a_hold_runs_out(store: Store, engine: Engine) -> None:
    await decided(store)
    end = app.clock() + 30 * SECOND
    await overwrite(engine, schema.reservations, expire_time=end + HOLD_MARGIN_US)
    assert (await validator_of(store)).until == end
    await overwrite(engine, schema.reservations, due_time=None)
    assert (await validator_of(store)).until == end


async def test_a_validator_ends_after_a_minute_so_that_changes_by_hand_show(store: Store) -> None:
    await decided(store, Observed.REJECTED)
    found = await read(store)
    assert found.validator
    assert found.validator.until == found.now + MAX_AGE_US
    await decided(store, Observed.HELD, "another")
    found = await read(store)
    assert found.validator
    assert found.validator.until == found.now + MAX_AGE_US


async def test_an_ended_validator_is_invalid(store: Store) -> None:
    await decided(store)
    validator = await validator_of(store)
    assert isinstance(await store.reads.find_json(KEY, validator._replace(until=app.clock() - 10 * SECOND)), CartJson)


async def test_a_validator_is_invalid_once_the_clock_was_set_back(store: Store) -> None:
    await decided(store)
    validator = await validator_of(store)
    assert await store.reads.find_json(KEY, validator) is NOT_MODIFIED
    later = validator._replace(since=validator.since + 10 * SECOND)
    assert isinstance(await store.reads.find_json(KEY, later), CartJson)


async def test_reads_in_one_statement_are_answered_each_by_its_own_validator(store: Store) -> None:
    await decided(store)
    validator = await validator_of(store)
    find = partial(store.reads.find_json, KEY)
    found = await asyncio.gather(find(validator), find(), find(validator._replace(version="")), find(validator))
    assert [one is NOT_MODIFIED for one in found] == [True, False, False, True]


class Counted(Reads):
    """Reads that count the carts that were modified."""

    count = 0

    async def find_json(self, key: CartKey, validator: CacheValidator | None = None) -> Found:
        found = await super().find_json(key, validator)
        self.count += isinstance(found, CartJson)
        return found


async def test_a_cached_reply_is_used_until_the_cart_changes(store: Store, engine: Engine) -> None:
    await decided(store, Observed.HELD, "a")
    reads = Counted(engine)
    cache = GetCartCache(reads)
    first = await cache.get_reply(KEY)
    assert await cache.get_reply(KEY) == first
    assert reads.count == 1
    await decided(store, Observed.HELD, "b")
    second = cart_service_pb2.GetCartResponse.FromString(await cache.get_reply(KEY)).cart
    assert [item.sku for item in second.items] == ["a", "b"]
    assert reads.count == 2


async def test_a_reply_that_does_not_fit_is_not_cached_and_the_oldest_is_evicted(store: Store, engine: Engine) -> None:
    await decided(store)
    other = cart_key(user_key("bob"), "default")
    await store.mutate(add(key=other))
    await store.record(answered(await claim_one(store)))
    one = len(await GetCartCache(Reads(engine)).get_reply(KEY))
    for size, expected in ((one, 4), (one + 1_000, 4), (2 * (one + 1_000), 2)):
        reads = Counted(engine)
        cache = GetCartCache(reads, size)
        for key in (KEY, other, KEY, other):
            found = cart_service_pb2.GetCartResponse.FromString(await cache.get_reply(key)).cart
            assert found.name == key.name
        assert reads.count == expected


async def test_a_purged_cart_is_not_found_in_spite_of_its_cached_reply(store: Store, engine: Engine) -> None:
    await decided(store)
    cache = GetCartCache(store.reads)
    await cache.get_reply(KEY)
    await store.mutate(remove())
    await expire(store, engine)
    await release_all(store)
    assert await store.purge(Purge(0, 0, 0, 100))
    with pytest.raises(CartNotFound):
        await cache.get_reply(KEY)
