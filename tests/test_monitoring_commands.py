"""`cart-grpc reservations check` and `cart-grpc top`, against real servers."""

import asyncio
import json
import os
import pty
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from cartgrpc.v1 import cart_admin_service_pb2 as pb
from cartgrpc.v1 import cart_admin_service_pb2_grpc
from pydantic import SecretStr

from cart_grpc.app import clock
from cart_grpc.carts.model import CheckoutState
from cart_grpc.cli import program as cli
from cart_grpc.cli import top
from tests.rpc.conftest import quiet_settings
from tests.rpc.right import CHECKOUT
from tests.rpc.test_admin import insert_the_checkout
from tests.service.conftest import Replica, running_replica
from tests.test_admin_cli import no_settings, operate

__all__ = ["no_settings", "operate"]
pytestmark = pytest.mark.usefixtures("no_settings")
ELEVEN_MINUTES_US = 660_000_000


class Shop:
    """A server without a reconciler, and its file. CART_ADMIN_LISTEN is its admin address."""

    def __init__(self, replica: Replica, file: Path) -> None:
        self.replica = replica
        self._file = file

    def change(self, sql: str, *values: int) -> None:
        """Run one statement in the database, as time and other programs would."""
        with closing(sqlite3.connect(self._file, timeout=10)) as connection:
            connection.execute(sql, values)
            connection.commit()


@pytest.fixture
async def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Shop]:
    file = tmp_path / "cart.db"
    settings = quiet_settings(f"sqlite:///{file}").with_changes(admin_listen="127.0.0.1:0")
    async with running_replica(settings, reconcile=False) as replica:
        monkeypatch.setenv("CART_ADMIN_LISTEN", f"127.0.0.1:{replica.admin_port}")
        yield Shop(replica, file)


@pytest.fixture
async def down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Replica]:
    """A server whose Reservation API does not answer."""
    settings = quiet_settings(f"sqlite:///{tmp_path}/cart.db").with_changes(
        admin_listen="127.0.0.1:0",
        reservation_url=SecretStr("grpc://127.0.0.1:1"),
        reservation_breaker_threshold=1,
        metrics_listen="127.0.0.1:0",
    )
    async with running_replica(settings) as replica:
        monkeypatch.setenv("CART_ADMIN_LISTEN", f"127.0.0.1:{replica.admin_port}")
        yield replica


async def found_by(operate: Any, *arguments: str) -> dict[str, dict[str, Any]]:
    """Run the check; return its problems by their names."""
    said = await operate("check", "--json", *arguments)
    problems = {one["problem"]: one for one in map(json.loads, said.lines)}
    assert said.status == (1 if problems else 0)
    return problems


async def test_a_service_without_problems_is_ok(shop: Shop, operate: Any) -> None:
    await shop.replica.add()
    said = await operate("check")
    assert (said.status, said.lines, said.err) == (0, ["ok: nothing has been stuck for 10m00s"], "")
    assert await found_by(operate) == {}


async def test_a_reservation_that_nobody_calls_for_and_that_was_never_answered_is_found(
    shop: Shop, operate: Any
) -> None:
    reservation_id = (await shop.replica.add()).reservation.reservation_id
    aged = "UPDATE reservations SET create_time = create_time - ?, last_error = 'UNAVAILABLE: x'"
    shop.change(aged, ELEVEN_MINUTES_US)
    problems = await found_by(operate)
    assert problems.keys() == {"NO_ANSWER"}
    assert problems["NO_ANSWER"]["oldest"] == f"reservations/{reservation_id}"
    assert problems["NO_ANSWER"]["message"].endswith(f"{reservation_id}: UNAVAILABLE: x")
    shop.change("UPDATE reservations SET due_time = due_time - ?", ELEVEN_MINUTES_US)
    assert (await found_by(operate)).keys() == {"NO_ANSWER", "NOT_CALLED"}
    assert await found_by(operate, "--max-age", "20m") == {}
    said = await operate("check")
    assert (said.status, said.lines[0][:12], len(said.lines)) == (1, "NOT_CALLED: ", 2)


async def test_an_old_reservation_with_a_new_change_is_found_only_after_many_attempts(shop: Shop, operate: Any) -> None:
    await shop.replica.add()
    shop.change(
        "UPDATE reservations SET create_time = create_time - ?, revision = 2, intent_revision = 2, "
        "observed_revision = 1, state = 1",
        ELEVEN_MINUTES_US,
    )
    assert await found_by(operate) == {}
    shop.change("UPDATE reservations SET attempt_count = 10")
    assert (await found_by(operate)).keys() == {"NO_ANSWER"}


async def test_a_reservation_that_is_set_aside_is_found_at_once(shop: Shop, operate: Any) -> None:
    await shop.replica.add("tea")
    await shop.replica.add("coffee")
    shop.change("UPDATE reservations SET set_aside_reason = 'value out of range', due_time = NULL")
    problem = (await found_by(operate))["SET_ASIDE"]
    assert problem["count"] == 2
    assert problem["message"].startswith("2 reservations are set aside; the oldest: reservations/")
    assert problem["message"].endswith("value out of range")


async def test_a_pause_that_somebody_forgot_is_found(shop: Shop, operate: Any) -> None:
    await operate("pause", "--reason", "their ticket 17")
    assert await found_by(operate) == {}
    shop.change("UPDATE pauses SET create_time = create_time - ?", ELEVEN_MINUTES_US)
    assert (await found_by(operate))["PAUSED"]["message"].endswith("ago: their ticket 17")


@pytest.mark.parametrize("state", [CheckoutState.COMPLETING, CheckoutState.FAILED])
async def test_a_paid_checkout_that_is_not_completed_is_found(
    shop: Shop, operate: Any, state: CheckoutState, tmp_path: Path
) -> None:
    insert_the_checkout(tmp_path / "cart.db")
    shop.change("UPDATE checkouts SET state = ?", state)
    problem = (await found_by(operate))[f"CHECKOUT_{state.name}"]
    assert (problem["count"], problem["oldest"]) == (1, CHECKOUT)
    assert problem["message"].startswith(f"1 checkout is {state.name}; the oldest for ")
    assert problem["message"].endswith(f"{CHECKOUT}, order order-17")
    shop.change("UPDATE checkouts SET update_time = ?", clock())
    assert await found_by(operate) == {}
    shop.change("UPDATE checkouts SET state = ?, update_time = 1", CheckoutState.OPEN)
    assert await found_by(operate) == {}


async def test_a_reservation_api_that_is_down_is_found(down: Replica, operate: Any) -> None:
    await down.add()
    problems: dict[str, Any] = {}
    for _ in range(200):
        problems = await found_by(operate, "--max-age", "0s")
        if "RESERVATION_API_DOWN" in problems:
            break
        await asyncio.sleep(0.02)
    assert problems["RESERVATION_API_DOWN"]["message"].startswith("the Reservation API has not answered for ")
    assert await found_by(operate) == {}


@pytest.mark.parametrize(("group", "arguments", "status"), [("reservations", ["check"], 3), ("top", ["--once"], 1)])
async def test_no_answer_is_neither_ok_nor_a_problem(
    operate: Any, group: str, arguments: list[str], status: int
) -> None:
    said = await operate(*arguments, "--address", "127.0.0.1:1", group=group)
    assert (said.status, said.out, said.err.count("\n")) == (status, "", 1)


@pytest.mark.parametrize(
    "arguments",
    [["reservations", "check", "--max-age", "x"], ["top", "--interval", "0"], ["top", "--interval", "0.09s"]],
    ids=" ".join,
)
def test_wrong_use_ends_with_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2


async def test_top_shows_the_lanes_the_backlog_and_the_errors_of_the_oldest_reservations(
    down: Replica, operate: Any
) -> None:
    item = await down.add()
    said = None
    for _ in range(50):
        said = await operate("--once", "--interval", "0.1s", group="top")
        if "probing" in said.out and "UNAVAILABLE" in said.out:
            break
    assert said
    assert said.status == 0
    table = {row[0]: row[1:] for row in said.rows if len(row) == 4}
    assert table["hold"][0].endswith("/1000")
    assert {"checkout", "release"} <= table.keys()
    assert "the Reservation API has not answered since" in said.out
    [row] = [row for row in said.rows if row[0] == item.reservation.reservation_id]
    assert row[-1].startswith("UNAVAILABLE")


async def test_the_counters_of_the_process_rise_with_its_calls_and_attempts(down: Replica) -> None:
    async with grpc.aio.insecure_channel(os.environ["CART_ADMIN_LISTEN"]) as channel:
        stub: Any = cart_admin_service_pb2_grpc.CartAdminServiceStub(channel)

        async def counts() -> Counter[tuple[str, str]]:
            stats = await stub.GetProcessStats(pb.GetProcessStatsRequest(), timeout=10)
            calls = {(one.method, one.code): one.count for one in stats.calls}
            return Counter(calls | {(one.lane, one.outcome): one.count for one in stats.attempts})

        before = await counts()
        await down.add()
        with pytest.raises(grpc.aio.AioRpcError):
            await down.get("users/alice/carts/missing")
        risen = await counts() - before
        for _ in range(200):
            if risen["hold", "UNAVAILABLE"]:
                break
            await asyncio.sleep(0.02)
            risen = await counts() - before
    assert (risen["AddItem", "OK"], risen["GetCart", "NOT_FOUND"]) == (1, 1)
    assert risen["hold", "UNAVAILABLE"]


def test_rates_count_from_zero_again_after_a_restart() -> None:
    before, after = pb.GetProcessStatsResponse(), pb.GetProcessStatsResponse()
    for response, counts in ((before, {"OK": 10, "INTERNAL": 50}), (after, {"OK": 30, "INTERNAL": 8})):
        for code, count in counts.items():
            response.calls.add(method="AddItem", code=code, count=count)
    assert [line.split() for line in top._call_lines(before, after, 2.0)] == [
        ["METHOD", "CALLS/s", "FAILED/s"],
        ["AddItem", "14.0", "4.0"],
        ["all", "14.0", "4.0"],
    ]


async def test_a_live_view_without_rich_is_wrong_use_in_one_line(
    shop: Shop, operate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setitem(sys.modules, "rich.live", None)
    said = await operate(group="top")
    assert (said.status, said.out, said.err.count("\n")) == (2, "", 1)
    assert "pip install 'cart-grpc[cli]'" in said.err


async def test_the_live_view_is_drawn_again_and_ctrl_c_ends_it_with_0_and_restores_the_terminal(shop: Shop) -> None:
    await shop.replica.add("espresso-beans")
    returncode, shown, complaints = await asyncio.to_thread(watch_until_twice, b"espresso-beans")
    assert b"\x1b[?1049l" in shown
    assert b"\x1b[?25h" in shown
    assert (returncode, complaints) == (0, b"")


def watch_until_twice(text: bytes) -> tuple[int, bytes, bytes]:
    """Run `top` in a terminal until it has shown `text` twice, then press Ctrl-C. Returns its end and its output."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "cart_grpc", "top", "--interval", "0.1s"]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "200", "LINES": "40"}
    with subprocess.Popen(command, stdout=theirs, stderr=subprocess.PIPE, env=environment) as process:
        os.close(theirs)
        shown = b""
        while shown.count(text) < 2:
            shown += os.read(ours, 4096)
        process.send_signal(signal.SIGINT)
        # A terminal without a program is an error on Linux.
        with suppress(OSError):
            while more := os.read(ours, 4096):
                shown += more
        os.close(ours)
        _, complaints = process.communicate(timeout=20)
    return process.returncode, shown, complaints
