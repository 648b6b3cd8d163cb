"""Each change of state is one line of a real process's log, with its cause."""

import asyncio
import re
import signal
from typing import Any

import grpc
import pytest
from cartgrpc.v1 import cart_admin_service_pb2 as pb
from cartgrpc.v1 import cart_admin_service_pb2_grpc

from tests.logs.lines import parse
from tests.processes.harness import LISTENS, Program, Programs, connected

pytestmark = pytest.mark.timeout(120)
OPERATORS = re.compile(r"^cart-grpc listens for operators on (\S+:\d+)$", re.MULTILINE)


async def until(program: Program, event: str) -> dict[str, Any]:
    """Wait until the program has logged the event; return the line."""
    async with asyncio.timeout(30):
        while f'"event": "{event}"' not in program.errors:
            assert program.is_running, program.errors
            await asyncio.sleep(0.02)
    return next(line for line in parse(program.errors) if line["event"] == event)


async def test_every_change_of_state_is_one_line_with_its_cause(shared_url: str, programs: Programs) -> None:
    simulated = await programs.simulate()
    settings = {
        "listen": "127.0.0.1:0", "admin_listen": "127.0.0.1:0", "database_url": shared_url,
        "reservation_url": simulated.url, "reservation_breaker_threshold": "1", "log_format": "json",
    }  # fmt: skip
    called = programs.start("serve", **settings)
    address, operators = (await called.says(LISTENS))[1], (await called.says(OPERATORS))[1]
    async with grpc.aio.insecure_channel(operators) as channel, connected(address) as client:
        admin: cart_admin_service_pb2_grpc.CartAdminServiceAsyncStub
        admin = cart_admin_service_pb2_grpc.CartAdminServiceStub(channel)
        await client.add("tea")
        await client.settled()
        await simulated.set_faults(down=True)
        await client.add("coffee")
        assert (await until(called, "breaker_opened"))["code"] == "UNAVAILABLE"
        await simulated.set_faults()
        await until(called, "breaker_closed")
        # Only now: it could have made the probe.
        other = programs.start("serve", **settings)
        await other.says(LISTENS)
        await admin.PauseReservations(pb.PauseReservationsRequest(reason="ticket 17"), timeout=10)
        assert (await until(called, "operator_paused"))["reason"] == "ticket 17"
        for program in (called, other):
            assert (await until(program, "reservations_paused"))["reason"] == "ticket 17"
        await admin.ResumeReservations(pb.ResumeReservationsRequest(), timeout=10)
        for program in (called, other):
            await until(program, "reservations_resumed")
    for program in (called, other):
        program.send(signal.SIGTERM)
        assert await program.ended(20) == 0
    lines, others = (
        # The test's PostgreSQL runs without fsync.
        [line for line in parse(program.errors) if line["event"] != "durability_risk"]
        for program in (called, other)
    )
    assert [line["event"] for line in lines] == [
        "started", "ready", "breaker_opened", "breaker_closed", "operator_paused", "reservations_paused",
        "operator_resumed", "reservations_resumed", "stopping", "drained", "stopped",
    ]  # fmt: skip
    assert {"version", "database", "schema", "port", "admin_port"} <= lines[0].keys()
    assert lines[-3]["cause"] == "SIGTERM"
    assert [line["event"] for line in others] == [
        "started", "ready", "reservations_paused", "reservations_resumed", "stopping", "drained", "stopped",
    ]  # fmt: skip
