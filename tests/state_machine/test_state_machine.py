"""Random sequences of calls, on each database. Deliberate defects of the service are found."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from cart_grpc.carts import add_items, lines, replace_items, rules, totals
from cart_grpc.carts.model import Cart, Line
from cart_grpc.commands.mutation import Mutation
from cart_grpc.commands.unit_of_work import UnitOfWork
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


DEFECTS: list[Callable[[Patch], None]] = [
    another_body_under_a_request_id_gets_the_reply,
    a_repeated_call_has_a_second_effect,
    an_etag_is_ignored,
    a_removed_item_keeps_its_reservation,
    equal_additions_of_a_batch_are_not_summed,
    a_replaced_item_is_reserved_anew,
    the_units_of_a_user_are_not_limited,
    a_currency_outlives_its_last_price,
]


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.__name__)
@pytest.mark.parametrize("backend", ["sqlite"])
def test_a_defect_is_found(defect: Callable[[Patch], None], server: ServerUnderTest, monkeypatch: Patch) -> None:
    defect(monkeypatch)
    with pytest.raises(AssertionError):
        _run(server, 60, 25, phases=[Phase.generate], derandomize=True, report_multiple_bugs=False)
