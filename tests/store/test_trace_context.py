"""The trace context in a reservation's row: that of the call that last changed its intent."""

from dataclasses import replace

from cart_grpc.commands.mutation import Mutation
from cart_grpc.protocol.lanes import RELEASE_LANE
from cart_grpc.protocol.transitions import next_intent
from cart_grpc.store.engine import Engine
from cart_grpc.store.store import Store
from tests.store.writes import add, answered, claim_one, remove, row_of, silent

FIRST, SECOND = (f"00-{n:032x}-{n:016x}-01" for n in (1, 2))


def traced(mutation: Mutation, context: str | None) -> Mutation:
    return replace(mutation, trace_context=context)


async def test_the_context_lasts_until_another_call_changes_the_intent(store: Store, engine: Engine) -> None:
    await store.mutate(traced(add(), FIRST))
    claimed = await claim_one(store)
    assert claimed.trace_context == FIRST
    intent = next_intent(claimed)
    assert intent
    assert intent.trace_context == FIRST
    # The first record reads the row, the second does not: see `settle`.
    await store.record(silent(claimed))
    await store.record(answered(await claim_one(store)))
    assert (await row_of(engine, claimed.reservation_id)).trace_context == FIRST
    await store.mutate(traced(add("another sku"), SECOND))
    assert (await row_of(engine, claimed.reservation_id)).trace_context == FIRST
    await store.mutate(traced(remove(), SECOND))
    assert (await claim_one(store, RELEASE_LANE)).trace_context == SECOND


async def test_a_call_that_is_not_traced_clears_the_context(store: Store, engine: Engine) -> None:
    await store.mutate(traced(add(), FIRST))
    await store.mutate(add())
    assert (await claim_one(store)).trace_context is None
