"""Every method, for every kind of caller, and everything that a request can aim at: the answer, and its effect."""

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.access.guarded import Files
from tests.access.identities import CALLERS
from tests.access.matrix import METHODS, Cell, cells_of, hides
from tests.access.rules import ACT_AS, RULES
from tests.access.stocked import Stocked, changed, stocked
from tests.databases import SHARDED, shards_of
from tests.postgres import PostgresServer

Cells = Mapping[str, Sequence[Cell]]
KNOWN = [method for method in METHODS if method in RULES]
# What the database decides, or could.
SAMPLE = [caller for caller in CALLERS if caller.name in ("user A", "token with act-as", "admin.read admin.write")]


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stocked]:
    async with stocked(Files(tmp_path_factory.mktemp("matrix")), flat(usual_cells())) as server:
        yield server


@cache
def usual_cells() -> Cells:
    return {method: list(cells_of(method)) for method in KNOWN}


def flat(cells: Cells) -> list[Cell]:
    return [cell for each in cells.values() for cell in each]


def test_every_method_has_a_rule() -> None:
    assert set(METHODS) == set(RULES)


@pytest.mark.parametrize("method", METHODS)
async def test_every_caller_gets_the_answer_that_the_rules_demand_and_changes_nothing_else(
    method: str, server: Stocked, caplog: pytest.LogCaptureFixture
) -> None:
    await check(server, usual_cells()[method], caplog)


async def test_the_rules_hold_on_postgresql(
    postgres: PostgresServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cells: Cells = {method: list(cells_of(method, SAMPLE)) for method in KNOWN}
    url = postgres.create_database("sharded_matrix", template=SHARDED)
    async with stocked(Files(tmp_path), flat(cells), database_url=url, database_shards=shards_of(url)) as server:
        await check(server, flat(cells), caplog)


@pytest.mark.night
@pytest.mark.timeout(600)
async def test_the_rules_hold_for_every_method_caller_and_target(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cells: Cells = {method: list(cells_of(method, every=True)) for method in KNOWN}
    async with stocked(Files(tmp_path), flat(cells)) as server:
        await check(server, flat(cells), caplog)


async def check(server: Stocked, cells: Sequence[Cell], caplog: pytest.LogCaptureFixture) -> None:
    """Make the calls of the cells, one after the other."""
    caplog.set_level(logging.DEBUG, "cart_grpc")
    faults: list[str] = []
    allowed, hidden = {""}, dict[Any, Any]()
    before = await server.database.read()
    for cell in cells:
        version = await server.database.version()
        seen = await server.ask(cell)
        if not cell.expected.matches(seen.answer):
            faults.append(f"{cell}: {seen.answer} instead of {cell.expected}")
        allowed |= cell.changes
        # A command that finds nothing is in a batch that writes its own number.
        may_commit = cell.changes or cell.expected.code == "NOT_FOUND"
        if not may_commit and await server.database.version() != version:
            faults.append(f"{cell}: something was committed")
        if cell.expected.code == "PERMISSION_DENIED" and hides(cell):
            key = cell.method, cell.caller.port, cell.caller.name, str(cell.expected)
            if hidden.setdefault(key, seen.raw) != seen.raw:
                faults.append(f"{cell}: its bytes show whether something exists")
        is_user = cell.caller.acts_for_itself and ACT_AS not in cell.caller.scopes
        if any(secret in repr(seen.raw) for secret in server.secrets_of(cell)):
            faults.append(f"{cell}: it shows the token")
        if is_user and f"users/{cell.other}/".encode() in repr(seen.raw).encode():
            faults.append(f"{cell}: it shows something of another user")
    if any(secret in caplog.text for cell in cells for secret in server.secrets_of(cell)):
        faults.append("the log shows a token")
    if strangers := changed(before, await server.database.read()) - allowed:
        faults.append(f"somebody changed what {sorted(strangers)} have")
    assert not faults, "\n".join([f"{len(faults)} faults", *faults[:20]])
