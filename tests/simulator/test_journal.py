"""The simulator's journal keeps every decision, even if the process is killed."""

import json
from contextlib import closing
from dataclasses import replace
from io import FileIO
from pathlib import Path
from shutil import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cart_grpc.protocol.reservation import Disposition, Observed
from cart_grpc.simulator.errors import BodyMismatch, RevisionTooLow
from cart_grpc.simulator.journal import Journal
from cart_grpc.simulator.stock import Levels, Stock
from tests.intents import SECOND, START, after, hold
from tests.simulator.test_rules import SKU, state_of


def reopened(path: Path) -> tuple[Journal, Stock]:
    """The journal and the stock, as a new process reads them."""
    journal = Journal(path)
    return journal, Stock(default_total=10, entries=journal.entries, log=journal.write)


def test_every_decision_survives_a_restart(tmp_path: Path) -> None:
    journal, stock = reopened(tmp_path / "journal")
    held, refused, released, sold = hold(2), hold(50), hold(1), hold(3)
    stock.set_stock(SKU, 8, START)
    for intent in (held, refused, after(released, Disposition.RELEASE), sold, after(sold, Disposition.COMMIT)):
        stock.apply(intent, START)
    before = stock.effects(0, 100, START), stock.levels(SKU, START)
    # The first journal is not closed, as after SIGKILL.
    second, again = reopened(Path(copy(tmp_path / "journal", tmp_path / "second")))
    assert (again.effects(0, 100, START), again.levels(SKU, START)) == before
    assert state_of(again.apply(refused, START)) == (Observed.REJECTED, 0)
    with pytest.raises(RevisionTooLow):
        again.apply(released, START)
    with pytest.raises(BodyMismatch):
        again.apply(replace(held, quantity=1), START)
    assert again.levels(SKU, START + 600 * SECOND).held == 0
    third, last = reopened(Path(copy(tmp_path / "second", tmp_path / "third")))
    assert last.effects(0, 100, START)[-1].state is Observed.EXPIRED
    for each in (journal, second, third):
        each.close()


@given(data=st.data())
def test_a_journal_cut_at_any_byte_is_read_up_to_its_last_complete_line(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal"
    journal, stock = reopened(path)
    intents = [hold(1) for _ in range(3)]
    for intent in intents:
        stock.apply(intent, START)
    journal.close()
    whole = path.read_bytes()
    size = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:size])
    journal, stock = reopened(path)
    assert len(stock.effects(0, 10, START)) == whole[:size].count(b"\n")
    for intent in intents:
        stock.apply(intent, START)
    journal.close()
    journal, stock = reopened(path)
    assert stock.levels(SKU, START) == Levels(7, 3, 0)
    journal.close()


@pytest.mark.parametrize("line", ["{}", "nonsense", json.dumps({"type": "decision"}), "[]"])
def test_a_file_that_is_not_a_journal_stays_unchanged(tmp_path: Path, line: str) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(f"{line}\ntorn")
    with pytest.raises(ValueError, match=r"line 1 of .*notes\.txt is not a journal entry"):
        Journal(path)
    assert path.read_text() == f"{line}\ntorn"


def test_an_incomplete_line_is_removed_if_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal"
    journal, stock = reopened(path)
    first = hold(1)
    stock.apply(first, START)
    kept = path.read_bytes()

    class FullDisk(FileIO):
        """A file that writes only half of each line."""

        def write(self, line: Any) -> int:
            return super().write(line[: len(line) // 2])

    broken = FullDisk(path, "a")
    monkeypatch.setattr(journal, "_file", broken)
    with pytest.raises(OSError, match="disk is full"):
        stock.apply(hold(1), START)
    monkeypatch.undo()
    broken.close()
    assert path.read_bytes() == kept
    stock.apply(hold(1), START)
    journal.close()
    journal, stock = reopened(path)
    assert stock.levels(SKU, START).held == 2
    journal.close()


def test_a_journal_is_private_and_belongs_to_one_simulator(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.touch(0o644)
    with closing(Journal(path)):
        assert path.stat().st_mode & 0o777 == 0o600
        (tmp_path / "link").symlink_to(path)
        with pytest.raises(OSError, match="it is in use by this process"):
            Journal(tmp_path / "link")
    Journal(path).close()
