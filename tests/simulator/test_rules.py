"""The simulator keeps the rules of `cartgrpc.reservation.v1`."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cart_grpc.protocol.reservation import Disposition, Intent, Observed
from cart_grpc.simulator.errors import BodyMismatch, RevisionTooLow, SimulatorError
from cart_grpc.simulator.rules import StoredReservation
from cart_grpc.simulator.stock import Levels, Stock
from tests.intents import SECOND, START, after, hold, new_id

SKU = "espresso-beans"
MINUTE = 60 * SECOND


def state_of(stored: StoredReservation) -> tuple[Observed, int]:
    """The state and the granted quantity."""
    return stored.state, stored.granted


@pytest.fixture
def stock() -> Stock:
    """A stock with 10 units of each sku."""
    return Stock(default_total=10)


def test_a_repeated_revision_gets_the_same_decision(stock: Stock) -> None:
    first = hold(10)
    decided = stock.apply(first, START)
    assert stock.apply(first, START + MINUTE) == decided
    refused = hold(1)
    assert state_of(stock.apply(refused, START)) == (Observed.REJECTED, 0)
    stock.set_stock(SKU, 5, START)
    assert state_of(stock.apply(refused, START)) == (Observed.REJECTED, 0)
    assert len(stock.effects(0, 100, START)) == 2


def test_a_repeated_revision_is_answered_with_the_current_state(stock: Stock) -> None:
    first = hold(2)
    stock.apply(first, START)
    later = stock.apply(first, START + 600 * SECOND)
    assert (later.state, later.granted, later.expire_time) == (Observed.EXPIRED, 0, None)


@pytest.mark.parametrize("change", [{"quantity": 3}, {"ttl_us": MINUTE}, {"sku": "tea"}])
def test_a_repeated_revision_with_a_different_body_is_refused_without_effect(
    stock: Stock, change: dict[str, object]
) -> None:
    first = hold(2)
    decided = stock.apply(first, START)
    with pytest.raises(BodyMismatch):
        stock.apply(replace(first, **change), START)  # type: ignore[arg-type]  # the field varies
    assert stock.find(first.reservation_id, START) == decided


def test_a_lower_revision_is_refused_without_effect_and_with_the_current_reservation(stock: Stock) -> None:
    first = hold(2, revision=3)
    current = stock.apply(first, START)
    with pytest.raises(RevisionTooLow) as caught:
        stock.apply(replace(first, revision=2, quantity=9), START)
    assert caught.value.current == current
    assert stock.levels(SKU, START) == Levels(8, 2, 0)


def test_a_release_of_an_unknown_id_refuses_a_late_hold(stock: Stock) -> None:
    first = hold(2)
    assert state_of(stock.apply(after(first, Disposition.RELEASE), START)) == (Observed.RELEASED, 0)
    with pytest.raises(RevisionTooLow) as caught:
        stock.apply(first, START)
    assert state_of(caught.value.current) == (Observed.RELEASED, 0)
    assert stock.levels(SKU, START) == Levels(10, 0, 0)


def test_a_refused_change_keeps_the_hold(stock: Stock) -> None:
    first = hold(3)
    stock.apply(first, START)
    stock.apply(hold(6), START)
    refused = stock.apply(after(first, Disposition.HOLD, quantity=5), START)
    assert (*state_of(refused), refused.reason) == (Observed.REJECTED, 3, "OUT_OF_STOCK")
    commit = after(replace(first, revision=2), Disposition.COMMIT, quantity=5)
    assert state_of(stock.apply(commit, START)) == (Observed.REJECTED, 3)
    assert stock.levels(SKU, START) == Levels(1, 9, 0)


def test_a_larger_hold_needs_stock_only_for_the_additional_units(stock: Stock) -> None:
    first = hold(6)
    stock.apply(first, START)
    assert state_of(stock.apply(after(first, Disposition.HOLD, quantity=10), START)) == (Observed.HELD, 10)


def test_a_refused_change_stays_rejected_after_the_kept_hold_expires(stock: Stock) -> None:
    first = hold(3)
    stock.apply(first, START)
    refused = after(first, Disposition.HOLD, quantity=11)
    stock.apply(refused, START)
    assert state_of(stock.apply(refused, START + 600 * SECOND)) == (Observed.REJECTED, 0)


def test_a_refused_renewal_extends_the_hold(stock: Stock) -> None:
    first = hold(3)
    stock.apply(first, START)
    refused = stock.apply(after(first, Disposition.HOLD), START + MINUTE, sold_out=True)
    assert state_of(refused) == (Observed.REJECTED, 3)
    assert refused.expire_time == START + MINUTE + first.ttl_us


def test_the_rejection_of_an_unknown_sku_is_remembered() -> None:
    stock = Stock({"tea": 1}, default_total=None)
    first = hold(1)
    assert stock.apply(first, START).reason == "UNKNOWN_SKU"
    stock.set_stock(SKU, 5, START)
    assert stock.apply(first, START).reason == "UNKNOWN_SKU"
    assert state_of(stock.apply(after(first, Disposition.HOLD), START)) == (Observed.HELD, 1)


def test_a_change_of_the_sku_is_rejected_while_units_are_held(stock: Stock) -> None:
    first = hold(2)
    stock.apply(first, START)
    refused = stock.apply(after(first, Disposition.HOLD, sku="tea"), START)
    assert (refused.reason, refused.granted, refused.sku) == ("SKU_CHANGED", 2, SKU)
    assert (stock.levels("tea", START).held, stock.levels(SKU, START).held) == (0, 2)


@pytest.mark.parametrize(
    ("last", "state", "granted"),
    [(Disposition.COMMIT, Observed.COMMITTED, 2), (Disposition.RELEASE, Observed.RELEASED, 0)],
)
@pytest.mark.parametrize("late", list(Disposition))
def test_a_final_state_absorbs_every_later_message(
    stock: Stock, last: Disposition, state: Observed, granted: int, late: Disposition
) -> None:
    first = hold(2)
    stock.apply(first, START)
    final = after(first, last)
    stock.apply(final, START)
    levels = stock.levels(SKU, START)
    absorbed = stock.apply(after(final, late, quantity=7), START + MINUTE)
    assert (*state_of(absorbed), absorbed.intent.revision) == (state, granted, 3)
    assert stock.levels(SKU, START) == levels


@pytest.mark.parametrize(("left", "state", "granted"), [(2, Observed.COMMITTED, 2), (1, Observed.REJECTED, 0)])
def test_a_commit_of_an_expired_hold_takes_the_units_only_if_they_are_available(
    stock: Stock, left: int, state: Observed, granted: int
) -> None:
    first = hold(2)
    stock.apply(first, START)
    later = START + 600 * SECOND
    stock.set_stock(SKU, left, later)
    assert state_of(stock.apply(after(first, Disposition.COMMIT), later)) == (state, granted)


def test_a_commit_sells_its_own_quantity(stock: Stock) -> None:
    first = hold(4)
    stock.apply(first, START)
    stock.apply(after(first, Disposition.COMMIT, quantity=3), START)
    assert stock.levels(SKU, START) == Levels(7, 0, 3)


def test_a_hold_never_expires_before_the_answered_expire_time(stock: Stock) -> None:
    first = hold(2)
    promised = stock.apply(first, START).expire_time
    shorter = stock.apply(after(first, Disposition.HOLD, ttl_us=SECOND, quantity=1), START)
    assert promised is not None
    assert shorter.expire_time == promised
    assert stock.levels(SKU, promised - 1).held == 1
    assert stock.levels(SKU, promised).held == 0


def test_revisions_are_remembered_after_the_hold_expired(stock: Stock) -> None:
    first = hold(2, revision=5)
    stock.apply(first, START)
    with pytest.raises(RevisionTooLow) as caught:
        stock.apply(replace(first, revision=4), START + 600 * SECOND)
    assert state_of(caught.value.current) == (Observed.EXPIRED, 0)


def test_nothing_changes_if_the_log_cannot_be_written() -> None:
    def full(_entry: object) -> None:
        raise OSError("no space")

    stock = Stock(log=full)
    with pytest.raises(OSError, match="no space"):
        stock.apply(hold(2), START)
    assert stock.effects(0, 10, START) == []
    assert stock.levels(SKU, START).held == 0


def test_an_unknown_old_id_is_decided_like_any_other(stock: Stock) -> None:
    old = "00000000-0000-7000-8000-000000000000"
    assert state_of(stock.apply(hold(2, reservation_id=old), START)) == (Observed.HELD, 2)


def test_effects_contain_every_decision_and_every_expiry(stock: Stock) -> None:
    first = hold(2)
    stock.apply(first, START)
    stock.apply(after(first, Disposition.HOLD, quantity=11), START)
    stock.apply(hold(3, reservation_id=new_id()), START + 1)
    effects = [
        (effect.sequence, effect.revision, effect.state.name, effect.quantity_before, effect.quantity_after)
        for effect in stock.effects(0, 100, START + 600 * SECOND)
    ]
    assert effects == [
        (1, 1, "HELD", 0, 2),
        (2, 2, "REJECTED", 2, 2),
        (3, 1, "HELD", 0, 3),
        (4, 1, "EXPIRED", 2, 0),
    ]
    assert [effect.sequence for effect in stock.effects(1, 2, START)] == [2, 3]


IDS = [new_id() for _ in range(4)]
STEPS = st.tuples(
    st.builds(
        Intent,
        reservation_id=st.sampled_from(IDS),
        revision=st.integers(1, 6),
        sku=st.sampled_from(["a", "b"]),
        quantity=st.integers(1, 5),
        disposition=st.sampled_from(Disposition),
        ttl_us=st.integers(1, 20),
        labels=st.just({}),
    ),
    st.integers(0, 15),
)


@given(st.lists(STEPS, max_size=30))
def test_no_sequence_of_messages_creates_or_loses_units(steps: list[tuple[Intent, int]]) -> None:
    stock = Stock(default_total=6)
    promised: dict[str, tuple[int, int]] = {}
    now = START
    for intent, passed in steps:
        now += passed
        try:
            stored = stock.apply(intent, now)
        except SimulatorError:
            continue
        promised.pop(intent.reservation_id, None)
        if stored.expire_time is not None:
            promised[intent.reservation_id] = (stored.expire_time, stored.granted)
        for sku in "ab":
            levels = stock.levels(sku, now)
            assert levels.available + levels.held + levels.committed == 6
            assert min(levels.available, levels.held, levels.committed) >= 0
        for reservation_id, (expire_time, granted) in promised.items():
            if now < expire_time:
                found = stock.find(reservation_id, now)
                assert found is not None
                assert found.granted == granted
    balance = dict.fromkeys("ab", 0)
    for effect in stock.effects(0, 1000, now):
        balance[effect.sku] += effect.quantity_after - effect.quantity_before
    for sku, taken in balance.items():
        levels = stock.levels(sku, now)
        assert taken == levels.held + levels.committed
