"""Random sequences of calls, on each database."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.state_machine.machine import CartMachine
from tests.state_machine.server import ServerUnderTest


@pytest.fixture
def server(database_url: str) -> Iterator[ServerUnderTest]:
    server = ServerUnderTest(database_url)
    yield server
    server.close()


def _run(server: ServerUnderTest, examples: int, steps: int) -> None:
    machine = type("Machine", (CartMachine,), {"server": server})
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    limits = settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=checks, database=None
    )
    run_state_machine_as_test(machine, settings=limits)  # type: ignore[no-untyped-call]


def test_every_call_does_what_the_plain_model_says(server: ServerUnderTest) -> None:
    _run(server, 12, 25)


@pytest.mark.night
def test_every_call_does_what_the_plain_model_says_all_night(server: ServerUnderTest) -> None:
    _run(server, 2_000, 60)
