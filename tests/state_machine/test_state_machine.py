"""Random sequences of calls, on each database. Deliberate defects of the service are found."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.errors import Flaky
from hypothesis.stateful import run_state_machine_as_test

from cart_grpc.carts import add_items, checkout, lines, merge, replace_items, rules, totals
from cart_grpc.carts.calls import LoadedCart
from cart_grpc.carts.checkout_calls import CheckoutChange, LoadedCheckout
from cart_grpc.carts.merge_room import Fit, MergeRoom
from cart_grpc.carts.model import Cart, CartState, CheckoutState, Line
from cart_grpc.commands.mutation import Mutation
from cart_grpc.commands.unit_of_work import UnitOfWork
from cart_grpc.protocol.transitions import release
from tests.state_machine.machine import CartMachine
from tests.state_machine.server import ServerUnderTest

Patch = pytest.MonkeyPatch
CHECKS = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


@pytest.fixture
def server(database_url: str) -> Iterator[ServerUnderTest]:
    server = ServerUnderTest(database_url)
    yield server
    server.close()


def _run(server: ServerUnderTest, examples: int, steps: int, **options: Any) -> None:
    machine = type("Machine", (CartMachine,), {"server": server})
    limits = settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=CHECKS, database=None
    )
    run_state_machine_as_test(machine, settings=settings(limits, **options))


def test_every_call_does_what_the_plain_model_says(server: ServerUnderTest) -> None:
    # A failure is printed as it was found: to shrink it takes minutes.
    _run(server, 12, 25, phases=[Phase.generate])


@pytest.mark.night
def test_every_call_does_what_the_plain_model_says_all_night(server: ServerUnderTest) -> None:
    _run(server, 2_000, 60)


def another_body_under_a_request_id_gets_the_reply(patch: Patch) -> None:
    real = Mutation.run

    def run(self: Mutation, unit: UnitOfWork, *rest: Any) -> bytes:
        stored = unit.replies.get((self.call.cart.user, self.call.request_id))
        call = replace(self.call, fingerprint=stored.fingerprint) if stored else self.call
        return real(replace(self, call=call), unit, *rest)

    patch.setattr(Mutation, "run", run)


def a_repeated_call_has_a_second_effect(patch: Patch) -> None:
    patch.setattr(UnitOfWork, "put_reply", lambda *_: None)


def an_etag_is_ignored(patch: Patch) -> None:
    real = rules.decide
    patch.setattr("cart_grpc.commands.mutation.decide", lambda found, call, at: real(found, replace(call, etag=""), at))


def a_removed_item_keeps_its_reservation(patch: Patch) -> None:
    patch.setattr(lines, "release", lambda row, _: row)


def equal_additions_of_a_batch_are_not_summed(patch: Patch) -> None:
    patch.setattr(add_items, "sum_up", lambda additions: list({one.item_id: one for one in additions}.values()))


def a_replaced_item_is_reserved_anew(patch: Patch) -> None:
    real = replace_items._set

    def reserve_anew(before: Line, addition: Any, releasing: Any, given: Any, **more: Any) -> Line:
        after = real(before, addition, releasing, given, **more)
        return after if after is not before else lines._reserve(before.item, releasing, given)

    patch.setattr(replace_items, "_set", reserve_anew)


def the_units_of_a_user_are_not_limited(patch: Patch) -> None:
    patch.setattr(Mutation, "_check_room", lambda *_: None)


def a_currency_outlives_its_last_price(patch: Patch) -> None:
    real = totals.recount

    def recount(cart: Cart, before: Line | None, after: Line | None) -> Cart:
        return real(cart, before, after)._replace(currency_code=cart.currency_code)

    for module in (rules, add_items, replace_items):
        patch.setattr(module, "recount", recount)


def a_checkout_does_not_freeze_its_cart(patch: Patch) -> None:
    real = checkout._freeze

    def freeze(*args: Any) -> CheckoutChange:
        change = real(*args)
        assert change.cart
        return change._replace(cart=change.cart._replace(state=CartState.ACTIVE))

    patch.setattr(checkout, "_freeze", freeze)


def a_second_begin_makes_a_second_checkout(patch: Patch) -> None:
    real = checkout.begin_checkout

    def begin(loaded: LoadedCart, *rest: Any) -> CheckoutChange:
        cart = loaded.cart and loaded.cart._replace(state=CartState.ACTIVE)
        return real(loaded._replace(cart=cart), *rest)

    patch.setattr("cart_grpc.commands.checkout.begin_checkout", begin)


def a_completed_checkout_leaves_the_items_in_the_cart(patch: Patch) -> None:
    real = checkout._sell

    def sell(cart: Cart, *rest: Any) -> CheckoutChange:
        change = real(cart, *rest)
        assert change.cart
        kept = cart._replace(state=change.cart.state, revision=change.cart.revision)
        return change._replace(cart=kept, passes=False)

    patch.setattr(checkout, "_sell", sell)


def a_cancelled_checkout_is_completed(patch: Patch) -> None:
    real = checkout.complete_checkout

    def complete(loaded: LoadedCheckout, *rest: Any) -> CheckoutChange:
        is_cancelled = loaded.checkout.state is CheckoutState.CANCELLED
        return CheckoutChange(loaded.checkout, loaded.lines) if is_cancelled else real(loaded, *rest)

    patch.setattr("cart_grpc.commands.checkout.complete_checkout", complete)


def a_merge_loses_one_of_two_equal_lines(patch: Patch) -> None:
    real = MergeRoom.fit

    def fit(self: MergeRoom, cart: Cart, before: Line | None, item: Any, units: int, **rows: int) -> Fit:
        return real(self, cart, before, item, 0 if before else units, **rows)

    patch.setattr(MergeRoom, "fit", fit)


def a_merge_takes_the_reservations_anew(patch: Patch) -> None:
    real = merge._Merge._move

    def move(self: Any, line: Line, item: Any) -> Line:
        self._removed.append(Line(line.item, release(line.reservation, self._now)))
        return lines._reserve(real(self, line, item).item, frozenset(), self._given)

    patch.setattr(merge._Merge, "_move", move)


def the_older_price_wins_in_a_merge(patch: Patch) -> None:
    patch.setattr(MergeRoom, "affords", lambda *_: False)


def a_merge_lists_no_adjustments(patch: Patch) -> None:
    real = merge._Merge.finish
    patch.setattr(merge._Merge, "finish", lambda self: real(self)._replace(adjustments=()))


# A busy machine takes longer.
pytestmark = pytest.mark.timeout(300)
DEFECTS: list[Callable[[Patch], None]] = [
    another_body_under_a_request_id_gets_the_reply,
    a_repeated_call_has_a_second_effect,
    an_etag_is_ignored,
    a_removed_item_keeps_its_reservation,
    equal_additions_of_a_batch_are_not_summed,
    a_replaced_item_is_reserved_anew,
    the_units_of_a_user_are_not_limited,
    a_currency_outlives_its_last_price,
    a_checkout_does_not_freeze_its_cart,
    a_second_begin_makes_a_second_checkout,
    a_completed_checkout_leaves_the_items_in_the_cart,
    a_merge_loses_one_of_two_equal_lines,
    a_merge_takes_the_reservations_anew,
    a_merge_lists_no_adjustments,
]
# Those that the fewest runs find.
BY_DAY = (
    another_body_under_a_request_id_gets_the_reply,
    an_etag_is_ignored,
    a_checkout_does_not_freeze_its_cart,
    a_merge_takes_the_reservations_anew,
)
AT_NIGHT = [one for one in DEFECTS if one not in BY_DAY]
# Sixty runs find these only sometimes.
RARE_DEFECTS = [a_cancelled_checkout_is_completed, the_older_price_wins_in_a_merge]


@pytest.mark.parametrize(
    "defect", [*BY_DAY, *(pytest.param(one, marks=pytest.mark.night) for one in AT_NIGHT)], ids=lambda one: one.__name__
)
@pytest.mark.parametrize("backend", ["sqlite"])
def test_a_defect_is_found(defect: Callable[[Patch], None], server: ServerUnderTest, monkeypatch: Patch) -> None:
    defect(monkeypatch)
    # A failure that depends on the order of two calls need not happen again: Hypothesis then raises both in a group.
    with pytest.raises((AssertionError, Flaky)):
        _run(server, 60, 25, phases=[Phase.generate], derandomize=True, report_multiple_bugs=False)


@pytest.mark.night
@pytest.mark.parametrize("defect", RARE_DEFECTS, ids=lambda defect: defect.__name__)
@pytest.mark.parametrize("backend", ["sqlite"])
def test_a_rare_defect_is_found(defect: Callable[[Patch], None], server: ServerUnderTest, monkeypatch: Patch) -> None:
    defect(monkeypatch)
    with pytest.raises((AssertionError, Flaky)):
        _run(server, 2_000, 25, phases=[Phase.generate], derandomize=True, report_multiple_bugs=False)
