"""Invariants after any sequence of calls, answers, operators and waits around checkouts."""

from collections.abc import Callable, Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from cart_grpc.carts.calls import AddItems, CartRead, Limits, addition
from cart_grpc.carts.checkout import MARGIN_US
from cart_grpc.carts.checkout_calls import BeginCheckout, CancelCheckout, CompleteCheckout
from cart_grpc.carts.model import CartState, Checkout, CheckoutState
from cart_grpc.carts.refusals import CallRefused
from cart_grpc.carts.sizes import CHECKOUT_ROOM, RESERVATION_BYTES, item_bytes
from cart_grpc.commands.checkout import CheckoutMutation, EndCheckout, EvaluateCheckout
from cart_grpc.commands.command import Command
from cart_grpc.commands.mutation import Mutation
from cart_grpc.commands.operator import Release
from cart_grpc.commands.record import RecordOutcome
from cart_grpc.commands.unit_of_work import UnitOfWork
from cart_grpc.names import CheckoutKey
from cart_grpc.protocol.reservation import Answer, Decision, Disposition, NoAnswer, Observed, Reservation
from cart_grpc.protocol.transitions import claim
from tests.carts.examples import KEY, NOW, SECOND, numbered_ids

LIMITS = Limits(hold_ttl_us=600 * SECOND)
WINDOW = 300 * SECOND
SILENCE = NoAnswer("UNAVAILABLE", "no answer")
# What a checkout counts before the items have passed to it.
EMPTY = CHECKOUT_ROOM + len(KEY.checkout("id-1").name) + len(KEY.name)
RUNNING = (CheckoutState.OPEN, CheckoutState.COMPLETING, CheckoutState.FAILED)


class World:
    """Carts and checkouts as a store keeps them, without a store. `steps` are the rows after each command."""

    def __init__(self) -> None:
        self.unit = UnitOfWork()
        self.now = NOW
        self.new_id = numbered_ids()
        self.claimed: list[Reservation] = []
        self.before: dict[str, Reservation] = {}

    def run(self, command: Command[object]) -> None:
        self.before = dict(self.unit.reservations)
        try:
            command.run(self.unit, self.now, self.new_id)
        except CallRefused:
            assert self.unit.reservations == self.before

    def add(self, sku: str) -> None:
        call = AddItems(KEY, [addition(sku, {}, 2, None, None)])
        self.run(Mutation(call, lambda *_: b"", LIMITS))

    def begin(self, window: int) -> None:
        self.run(CheckoutMutation(BeginCheckout(KEY, window_us=window), lambda *_: b"", LIMITS))

    def complete(self, position: int) -> None:
        for key in self._pick(position):
            self.run(CheckoutMutation(CompleteCheckout(key, order_reference="o"), lambda *_: b"", LIMITS))

    def cancel(self, position: int) -> None:
        for key in self._pick(position):
            self.run(CheckoutMutation(CancelCheckout(key), lambda *_: b"", LIMITS))

    def end(self, force: bool) -> None:
        for key in self._pick(0):
            self.run(EndCheckout(key, "stuck", force))

    def sweep(self) -> None:
        for key in list(self.unit.checkouts):
            self.run(EvaluateCheckout(key))

    def wait(self, seconds: int) -> None:
        self.now += seconds * SECOND

    def claim(self, position: int) -> None:
        due = [row for row in self.unit.reservations.values() if row.due_time is not None and row.due_time <= self.now]
        if due:
            row = claim(due[position % len(due)], self.now, self.now + 15 * SECOND)
            self.unit.put_reservation(row)
            self.claimed.append(row)

    def answer(self, position: int, kind: Observed | None, seconds: int) -> None:
        """Answer any claim that was ever made, as often as it comes, so that answers are late and repeated."""
        if not self.claimed:
            return
        row = self.claimed[position % len(self.claimed)]
        outcome: Answer | NoAnswer = SILENCE if kind is None else _decide(row, kind, self.now + seconds * SECOND)
        self.run(RecordOutcome(row, outcome, SECOND))

    def reconcile(self, kinds: Sequence[Observed | None], seconds: int) -> None:
        """Claim all due rows, and answer each claim with one of `kinds`."""
        for kind in kinds:
            count = len(self.claimed)
            self.claim(0)
            if len(self.claimed) > count:
                self.answer(count, kind, seconds)

    def release(self, position: int, force: bool) -> None:
        rows = sorted(self.unit.reservations)
        if rows:
            self.run(Release(self.unit.reservations[rows[position % len(rows)]], "gone", force))

    def _pick(self, position: int) -> list[CheckoutKey]:
        """The latest checkout, or the one before."""
        return list(self.unit.checkouts)[::-1][position : position + 1]


def _decide(row: Reservation, kind: Observed, expire_time: int) -> Decision:
    """The decision of an API, which cannot hold what should be sold, nor sell what should be held."""
    if row.disposition is Disposition.RELEASE:
        return Decision(row.reservation_id, row.revision, Observed.RELEASED, 0, None, "")
    good = Observed.COMMITTED if row.disposition is Disposition.COMMIT else Observed.HELD
    if kind is Observed.HELD:
        end = expire_time if good is Observed.HELD else None
        return Decision(row.reservation_id, row.revision, good, row.quantity, end, "")
    bad = Observed.REJECTED if row.disposition is Disposition.COMMIT else kind
    return Decision(row.reservation_id, row.revision, bad, 0, None, "OUT_OF_STOCK")


POSITIONS = st.integers(0, 5)
KINDS = st.sampled_from([None, Observed.HELD, Observed.HELD, Observed.HELD, Observed.REJECTED, Observed.EXPIRED])
LASTING = st.sampled_from([10, 600, 1200])
STEPS: st.SearchStrategy[Callable[[World], None]] = st.one_of(
    st.builds(lambda sku: lambda world: world.add(sku), st.sampled_from("ab")),
    st.builds(lambda window: lambda world: world.begin(window), st.sampled_from([WINDOW, 3 * WINDOW])),
    st.builds(lambda position: lambda world: world.complete(position), st.sampled_from([0, 0, 0, 1])),
    st.builds(lambda position: lambda world: world.cancel(position), st.sampled_from([0, 0, 0, 1])),
    st.builds(lambda force: lambda world: world.end(force), st.booleans()),
    st.just(lambda world: world.sweep()),
    st.builds(lambda seconds: lambda world: world.wait(seconds), st.sampled_from([1, 100, 400])),
    st.builds(lambda position: lambda world: world.claim(position), POSITIONS),
    st.builds(
        lambda position, kind, seconds: lambda world: world.answer(position, kind, seconds), POSITIONS, KINDS, LASTING
    ),
    st.builds(
        lambda kinds, seconds: lambda world: world.reconcile(kinds, seconds),
        st.lists(KINDS, min_size=1, max_size=4),
        LASTING,
    ),
    st.builds(lambda position, force: lambda world: world.release(position, force), POSITIONS, st.booleans()),
)


def start(world: World, state: CheckoutState | None, window: int) -> None:
    """Bring a checkout of two items into a state. Otherwise few sequences come that far.

    The holds must be extended for a window of 3 * WINDOW.
    """
    if state is None:
        return
    world.add("a")
    world.add("b")
    world.reconcile([Observed.HELD] * 2, 600)
    world.begin(window)
    assert [each.is_ready for each in world.unit.checkouts.values()] == [window == WINDOW]
    if state is not CheckoutState.OPEN and window > WINDOW:
        world.reconcile([Observed.HELD] * 2, 1200)
    if state is not CheckoutState.OPEN:
        world.complete(0)
    if state is CheckoutState.FAILED:
        world.reconcile([Observed.HELD, Observed.REJECTED], 600)
    assert [each.state for each in world.unit.checkouts.values()] == [state]


@settings(max_examples=300)
@given(st.sampled_from([None, *RUNNING]), st.sampled_from([WINDOW, 3 * WINDOW]), st.lists(STEPS, max_size=20))
def test_a_checkout_never_loses_sells_twice_or_gives_back_what_is_sold(
    state: CheckoutState | None, window: int, steps: list[Callable[[World], None]]
) -> None:
    world = World()
    start(world, state, window)
    for step in steps:
        step(world)
        check_carts(world)
        check_rows(world)
        check_checkouts(world)
        check_totals(world)


def check_carts(world: World) -> None:
    """A cart is frozen exactly while one checkout of it is OPEN."""
    is_open = [key for key, checkout in world.unit.checkouts.items() if checkout.state is CheckoutState.OPEN]
    cart = world.unit.carts.get(KEY)
    frozen = [KEY.checkout(cart.checkout_id)] if cart and cart.state is CartState.CHECKING_OUT else []
    assert is_open == frozen


def check_rows(world: World) -> None:
    """From COMMIT nothing follows but a refusal, a sold item stays sold, and a thawed hold has its ttl back."""
    unit = world.unit
    for name, before in world.before.items():
        after = unit.reservations[name]
        if before.disposition is Disposition.COMMIT and after.disposition is not Disposition.COMMIT:
            assert before.state is Observed.REJECTED
        assert before.state is not Observed.COMMITTED or after.state is Observed.COMMITTED
    checkout_of_cart = unit.carts[KEY].checkout_id if unit.carts.get(KEY) else ""
    for line in unit.get_loaded_cart([CartRead(KEY)]).lines.values():
        row = line.reservation
        assert row.disposition is not Disposition.COMMIT
        if row.disposition is Disposition.HOLD:
            assert row.checkout_id == checkout_of_cart
        if not row.checkout_id and row.settled and not row.is_closed:
            assert row.ttl_us == LIMITS.hold_ttl_us
        if row.checkout_id:
            assert row.ttl_us <= 3 * WINDOW + MARGIN_US


def check_checkouts(world: World) -> None:
    """Each checkout has its items until it thaws, and its state follows from theirs."""
    for key, checkout in world.unit.checkouts.items():
        rows = [line.reservation for line in world.unit.get_loaded_checkout(key).lines]
        sold = [row.state is Observed.COMMITTED for row in rows]
        passed = world.unit.checkout_items[key]
        match checkout.state:
            case CheckoutState.COMPLETED:
                assert all(sold)
            case CheckoutState.FAILED:
                assert not all(sold)
            case CheckoutState.EXPIRED:
                assert not passed
        id_bytes = len(key.checkout_id) - len("id-1")
        assert checkout.byte_size == EMPTY + id_bytes + sum(map(item_bytes, passed.values()))
        assert len(rows) == checkout.item_count or not is_running(checkout)
        assert not checkout.order_reference or len(passed) == checkout.item_count


def is_running(checkout: Checkout) -> bool:
    return checkout.state in RUNNING


def check_totals(world: World) -> None:
    """The user's totals are the sums over all rows."""
    unit = world.unit
    cart = unit.carts.get(KEY)
    size = sum(checkout.byte_size for checkout in unit.checkouts.values()) + (cart.byte_size if cart else 0)
    totals = unit.find_totals(KEY.user)
    assert totals.stored_bytes == size + RESERVATION_BYTES * len(unit.reservations)
    assert totals.item_count == len(unit.items[KEY])
    assert totals.cart_count == bool(cart and cart.state in (CartState.ACTIVE, CartState.CHECKING_OUT))
