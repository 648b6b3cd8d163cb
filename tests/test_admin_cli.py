"""The subcommands for operators, against a real server: their output and exit status."""

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cartgrpc.v1 import cart_service_pb2
from pydantic import SecretStr

from cart_grpc import app
from cart_grpc.cli import admin_users as users_cli
from cart_grpc.cli import program as cli
from cart_grpc.settings import Settings
from cart_grpc.store import schema
from tests.databases import open_database, shards_of
from tests.postgres import PostgresServer
from tests.rpc.conftest import quiet_settings
from tests.service.conftest import CART, Replica, running_replica

pytestmark = pytest.mark.usefixtures("no_settings")
MISSING = "01900000-0000-7000-8000-000000000000"


@pytest.fixture
def no_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working directory and an environment without settings."""
    for name in [name for name in os.environ if name.upper().startswith("CART_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
async def replica(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Replica]:
    """A server without a reconciler; CART_ADMIN_LISTEN is its admin address."""
    settings = quiet_settings(f"sqlite:///{tmp_path}/cart.db").with_changes(admin_listen="127.0.0.1:0")
    async with running_replica(settings, reconcile=False) as replica:
        monkeypatch.setenv("CART_ADMIN_LISTEN", f"127.0.0.1:{replica.admin_port}")
        yield replica


class Said:
    """The exit status and output of a command."""

    def __init__(self, status: int, said: Any) -> None:
        self.status, self.out, self.err = status, said.out, said.err
        self.lines: list[str] = said.out.splitlines()

    @property
    def rows(self) -> list[list[str]]:
        """The cells of the printed table, without its header."""
        return [re.split(r"  +", line) for line in self.lines[1:]]


@pytest.fixture
def operate(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run `cart-grpc reservations …` in a thread, because it blocks and this loop's server must answer."""

    async def run(*arguments: str, group: str = "reservations") -> Said:
        status = await asyncio.to_thread(cli.main, [group, *arguments])
        return Said(status, capsys.readouterr())

    return run


async def test_list_prints_an_aligned_table(replica: Replica, operate: Any) -> None:
    assert (await operate("list")).lines[1:] == []
    items = [await replica.add("espresso-beans", 2), await replica.add("tea")]
    said = await operate("list")
    assert said.status == 0
    header, *lines = said.lines
    starts = [header.index(name) for name in header.split()]
    for line, item in zip(lines, items, strict=True):
        cells = [line[start:].split()[0] for start in starts[:-1]]
        expected = [item.reservation.reservation_id, "DUE", "PENDING", "HOLD", str(item.quantity), item.sku, "0"]
        assert cells[:7] == expected
        assert cells[8] == "0/1"
        for age in cells[9:11]:
            assert re.fullmatch(r"\d+s", age)
        assert cells[11:] == [item.name]


async def test_lists_can_be_filtered_and_limited(replica: Replica, operate: Any) -> None:
    for number in range(3):
        await replica.add(f"sku-{number}")
    for arguments, count in (
        (["--limit", "2"], 2), (["--state", "due"], 3), (["--state", "waiting"], 0), (["--min-attempts", "1"], 0),
        (["--min-age", "3600"], 0), (["--state", "held", "--state", "due"], 3), (["--limit", "0"], 0),
        (["--sku", "sku-1"], 1), (["--parent", CART], 3), (["--parent", "users/bob"], 0),
    ):  # fmt: skip
        assert len((await operate("list", *arguments)).rows) == count, arguments


async def test_carts_of_all_users_are_listed_and_filtered(replica: Replica, operate: Any) -> None:
    carts = ["users/ann/carts/default", "users/anna/carts/wishes", "users/bob/carts/default"]
    for number, cart in enumerate(carts):
        await replica.add(f"sku-{number}", 3, cart)
    said = await operate("list", group="carts")
    assert (said.status, said.lines[0].split()[:4]) == (0, ["CART", "STATE", "ITEMS", "UNITS"])
    assert sorted(row[0] for row in said.rows) == carts
    assert {tuple(row[1:5]) for row in said.rows} == {("ACTIVE", "1", "3", "yes")}
    for arguments, found in (
        (["--user-prefix", "ann"], carts[:2]), (["--sku", "sku-1"], carts[1:2]), (["--state", "deleted"], []),
        (["--state", "active", "--state", "merged"], carts), (["--min-age", "1h"], []), (["--limit", "0"], []),
    ):  # fmt: skip
        lines = (await operate("list", *arguments, "--json", group="carts")).lines
        assert sorted(json.loads(line)["name"] for line in lines) == found, arguments
    assert len((await operate("list", "--limit", "2", group="carts")).rows) == 2


@pytest.fixture
async def sweeping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Replica]:
    """A server that sweeps often. Its Reservation API does not answer."""
    settings = quiet_settings(f"sqlite:///{tmp_path}/cart.db").with_changes(
        admin_listen="127.0.0.1:0", reservation_url=SecretStr("http://127.0.0.1:1"), housekeeping_interval=0.1
    )
    async with running_replica(settings) as replica:
        monkeypatch.setenv("CART_ADMIN_LISTEN", f"127.0.0.1:{replica.admin_port}")
        yield replica


async def test_a_user_is_erased_and_the_progress_is_shown(
    sweeping: Replica, operate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(users_cli, "POLL_SECONDS", 0.02)
    said = await operate("erase", "nobody", group="users")
    assert (said.status, said.rows) == (0, [["yes", "0", "0", "0", "-", "-"]])
    item = await sweeping.add()
    [line] = (await operate("erase", "users/alice", "--json", group="users")).lines
    assert json.loads(line)["unreleasedCount"] == "1"
    [row] = (await operate("erase", "alice", "--progress-only", group="users")).rows
    assert (row[:4], row[5]) == (["no", "0", "1", "1"], "-")
    await operate("release", item.reservation.reservation_id, "--force", "--reason", "their ticket 17")
    said = await operate("erase", "alice", "--wait", group="users")
    assert (said.status, said.rows) == (0, [["yes", "0", "0", "0", "-", "-"]])
    assert set(said.err.splitlines()) <= {
        f"cart-grpc: users/alice: {count} carts and 0 reservations that are not released are left" for count in (0, 1)
    }
    said = await operate("erase", "a b", group="users")
    assert (said.status, said.out) == (1, "")
    assert "name: must be users/{user}" in said.err


async def test_a_long_list_is_fetched_in_pages(replica: Replica, operate: Any) -> None:
    for cart in range(3):
        request = cart_service_pb2.BatchAddItemsRequest(parent=f"users/alice/carts/{cart}")
        for number in range(200):
            request.requests.add().item.sku = f"sku-{number}"
        await replica.stub.BatchAddItems(request)
    lines = (await operate("list", "--limit", "1000", "--json")).lines
    assert len({json.loads(line)["name"] for line in lines}) == 600


async def test_json_output_has_one_object_per_line(replica: Replica, operate: Any) -> None:
    item = await replica.add()
    [line] = (await operate("list", "--json")).lines
    assert json.loads(line)["name"] == f"reservations/{item.reservation.reservation_id}"
    [line] = (await operate("stats", "--json")).lines
    assert json.loads(line)["backlog"][0]["count"] == "1"


async def test_reservations_are_shown_retried_and_released_by_name_or_id(replica: Replica, operate: Any) -> None:
    reservation_id = (await replica.add()).reservation.reservation_id
    for name in (reservation_id, f"reservations/{reservation_id}"):
        assert (await operate("show", name)).rows[0][1] == "DUE"
        assert (await operate("retry", name)).rows[0][1] == "DUE"
    released = await operate("release", reservation_id, "--reason", "their ticket 17")
    assert released.rows[0][1:4] == ["DUE", "PENDING", "RELEASE"]
    released = await operate("release", reservation_id, "--reason", "their ticket 17", "--force")
    assert released.rows[0][1:4] == ["REJECTED", "REJECTED", "RELEASE"]
    assert released.rows[0][-1] == "RELEASED_BY_OPERATOR: their ticket 17"
    cart = await replica.get(CART)
    assert cart.items[0].reservation.reason == "RELEASED_BY_OPERATOR"


async def test_stats_pause_and_resume_print_the_backlog_and_the_pause(replica: Replica, operate: Any) -> None:
    await replica.add()
    said = await operate("stats")
    assert said.rows[0][:3] == ["DUE", "HOLD", "1"]
    assert re.search(r"^due now: 1, the oldest since \S+Z$", said.out, re.MULTILINE)
    assert "this process" not in said.out
    assert re.search(
        r"^PAUSED since \S+Z: their ticket 17$",
        (await operate("pause", "--reason", "their ticket 17")).out,
        re.MULTILINE,
    )
    assert "PAUSED" in (await operate("stats")).out
    assert "PAUSED" not in (await operate("resume")).out


async def test_a_refused_call_ends_with_1_and_one_line(replica: Replica, operate: Any) -> None:
    address = os.environ["CART_ADMIN_LISTEN"]
    said = await operate("show", MISSING)
    assert (said.status, said.out) == (1, "")
    assert said.err == f"cart-grpc: {address}: NOT_FOUND: reservations/{MISSING} was not found\n"
    said = await operate("pause", "--reason", "")
    assert (said.status, said.err.count("\n")) == (1, 1)
    assert "reason: must have 1 to 256 characters" in said.err


async def test_an_unreachable_server_ends_with_1_and_one_line(operate: Any) -> None:
    said = await operate("stats", "--address", "127.0.0.1:1")
    assert (said.status, said.out, said.err.count("\n")) == (1, "", 1)
    assert said.err.startswith("cart-grpc: 127.0.0.1:1: UNAVAILABLE")


@pytest.mark.parametrize("address", ["nonsense", ":1", "127.0.0.1:x"])
async def test_an_invalid_or_missing_address_is_wrong_use(address: str, operate: Any) -> None:
    said = await operate("stats", "--address", address)
    assert (said.status, said.err) == (2, "cart-grpc: the address must be HOST:PORT, such as 127.0.0.1:50051\n")
    said = await operate("stats")
    assert said.status == 2
    assert said.err.startswith("cart-grpc: CART_ADMIN_LISTEN is not set")


@pytest.mark.parametrize(
    "arguments",
    [[], ["nonsense"], ["list", "--state", "nonsense"], ["list", "--limit", "x"], ["retry"], ["release", MISSING],
     ["pause"], ["after-restore", "now"]],
    ids=" ".join,
)  # fmt: skip
def test_wrong_use_ends_with_2_and_a_usage_line(arguments: list[str], capsys: Any) -> None:
    assert_usage(["reservations", *arguments], capsys)


@pytest.mark.parametrize(
    "arguments", [["carts"], ["carts", "list", "--state", "held"], ["users"], ["users", "erase"]], ids=" ".join
)
def test_wrong_use_of_the_other_groups_ends_with_2_and_a_usage_line(arguments: list[str], capsys: Any) -> None:
    assert_usage(arguments, capsys)


def assert_usage(arguments: list[str], capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("usage: cart-grpc ")


@pytest.mark.parametrize(
    "arguments",
    [["list", "--min-attempts", "9" * 20],
     ["show", "\udcff"]],
    ids=ascii,
)  # fmt: skip
async def test_an_argument_out_of_range_is_wrong_use_in_one_line(
    replica: Replica, operate: Any, arguments: list[str]
) -> None:
    said = await operate(*arguments)
    assert (said.status, said.out, said.err.count("\n")) == (2, "", 1)
    assert "Traceback" not in said.err


async def test_after_restore_needs_a_database_of_this_release(operate: Any) -> None:
    said = await operate("after-restore")
    assert said.status == 2
    assert "run `cart-grpc migrate` first" in said.err


async def test_after_restore_leaves_finished_reservations_alone_and_waiting_ones_waiting(
    database_url: str, operate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CART_DATABASE_URL", database_url)
    monkeypatch.setenv("CART_DATABASE_SHARDS", str(shards_of(database_url)))
    async with running_replica(quiet_settings(database_url), reconcile=False) as replica:
        for sku in ("finished", "waiting", "due"):
            await replica.add(sku)
    engine = open_database(database_url)
    table = schema.reservations

    def prepare(connection: Any) -> None:
        for sku, values in (("finished", {"finish_time": 1}), ("waiting", {"waiting": True, "due_time": None})):
            connection.execute(table.update().where(table.c.sku == sku).values(values))

    def look(connection: Any) -> dict[str, Any]:
        rows = connection.execute(table.select())
        return {row.sku: (row.revision, row.intent_revision, row.due_time) for row in rows}

    await engine.transact(prepare)
    before = await engine.transact(look)
    await engine.close()
    began = app.clock()
    said = await operate("after-restore")
    assert said.out.startswith("2 unfinished reservations ")
    engine = open_database(database_url)
    after = await engine.transact(look)
    await engine.close()
    raised = after["due"][0]
    assert began <= raised <= app.clock()
    assert after == {"finished": before["finished"], "waiting": (raised, raised, None), "due": (raised, raised, 0)}


async def test_a_process_that_only_reconciles_also_listens_for_operators(
    postgres: PostgresServer, operate: Any
) -> None:
    url = postgres.create_database(f"admin_{os.getpid()}", template="template_cart")
    settings = Settings(database_url=url, admin_listen="127.0.0.1:0", shutdown_grace=0.2)
    async with app.running(settings, serve=False, reconcile=True) as ports:
        assert ports.port == 0
        said = await operate("stats", "--address", f"127.0.0.1:{ports.admin_port}")
        assert "0 calls in flight; the Reservation API answers" in said.out
