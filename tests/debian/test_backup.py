"""Restores from the backups of Debian's `sqlite3` and of Debian's PostgreSQL with its archive of the log."""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.postgres import PostgresServer, fast_folder, process_owner, running_postgres
from tests.processes.harness import Programs, running_programs
from tests.processes.test_restore import FileBackup, copy_with_command, lose_and_restore, vacuum_into

pytestmark = [pytest.mark.debian, pytest.mark.timeout(120)]


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    with running_programs(tmp_path) as programs:
        yield programs


@pytest.mark.parametrize("copy", [copy_with_command, vacuum_into], ids=lambda copy: copy.__name__)
async def test_a_copy_of_the_sqlite3_command_while_serving_is_reconciled_after_a_restore(
    copy: Callable[[Path, Path], None], programs: Programs
) -> None:
    await lose_and_restore(programs, FileBackup(programs.folder, copy))


async def test_a_recovery_to_a_point_in_time_is_reconciled_after_a_restore(programs: Programs) -> None:
    with running_archive() as backup:
        await lose_and_restore(programs, backup)


class PointInTime:
    """A base backup and an archive of the log of `lost`, and a new server that is recovered to a time after both.

    The time is that of `take`; the changes that follow are in the archive, too, and must not be recovered.
    """

    def __init__(self, lost: PostgresServer, folder: Path, stack: ExitStack) -> None:
        self.url = lost.create_database("cart")
        self._lost, self._folder, self._stack = lost, folder, stack
        self._time = ""

    def take(self) -> None:
        base = self._folder / "base"
        self._lost.run_program("pg_basebackup", f"--pgdata={base}", "--wal-method=none", "--checkpoint=fast")
        self._time = self._lost.run("SELECT clock_timestamp()")

    def restore(self) -> str:
        last = self._lost.run("SELECT pg_walfile_name(pg_current_wal_lsn())")
        self._lost.run("SELECT pg_switch_wal()")
        deadline = time.monotonic() + 20
        while not (self._folder / last).exists():
            assert time.monotonic() < deadline, f"{last} was not archived: {self._lost.log[-2000:]}"
            time.sleep(0.05)
        self._lost.destroy()
        settings = {
            "restore_command": f"cp {self._folder}/%f %p",
            "recovery_target_time": self._time,
            "recovery_target_action": "promote",
        }
        server = self._stack.enter_context(running_postgres(binaries=binaries(), settings=settings, fill=self._fill))
        while server.run("SELECT pg_is_in_recovery()") == "t":
            time.sleep(0.05)
        return f"postgresql+asyncpg://postgres@/cart?host={server.directory}"

    def _fill(self, server: PostgresServer) -> None:
        shutil.move(self._folder / "base", server.data)
        (server.data / "recovery.signal").touch()


@contextmanager
def running_archive() -> Iterator[PointInTime]:
    # On the file system of the servers: a move to another one would copy the files as the tests' own user.
    folder = Path(tempfile.mkdtemp(prefix="wal-", dir=fast_folder()))
    owner = process_owner()
    if owner:
        shutil.chown(folder, owner["user"], owner["group"])
    # Renamed at the end: the recovery must not read half of a file.
    copy = f"test ! -f {folder}/%f && cp %p {folder}/%f.part && mv {folder}/%f.part {folder}/%f"
    archive = {"archive_mode": "on", "archive_command": copy}
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        yield PointInTime(stack.enter_context(running_postgres(binaries=binaries(), settings=archive)), folder, stack)


def binaries() -> Path:
    """The programs of Debian's newest PostgreSQL."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    assert found, "PostgreSQL is not installed: run `make debian`"
    return found[-1]
