"""The file of a SQLite database: one process uses it, whatever name leads to it, and only its user can read it."""

import asyncio
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from sqlalchemy import make_url

from cart_grpc import app, database_setup
from cart_grpc.app import running_store
from cart_grpc.carts.refusals import DatabaseUnavailable
from cart_grpc.files import LockedFile
from cart_grpc.settings import Settings
from cart_grpc.store.engine import connect
from cart_grpc.store.sqlite import SqliteEngine
from cart_grpc.store.sqlite_file import SqliteFile, check_names, check_url
from cart_grpc.store.store import Store
from tests.store.writes import SKU, add, decode


@pytest.fixture
def backend() -> str:
    return "sqlite"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "cart.db"


def refused(path: Path) -> str:
    """Return why the file cannot be used."""
    try:
        SqliteFile(path).close()
    except OSError as error:
        return str(error.strerror)
    raise AssertionError(f"{path} was opened")


def modes_in(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}


def put_aside(file: Path, replacement: bytes | None = None) -> Path:
    """Move the file, and perhaps put another one in its place. Returns the new path."""
    aside = file.rename(file.with_name("aside.db"))
    if replacement is not None:
        file.write_bytes(replacement)
    return aside


@contextmanager
def umask(value: int) -> Iterator[None]:
    before = os.umask(value)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize("way", ["the same path", "a relative path", "a symlink", "a hard link", "a linked directory"])
def test_a_file_in_use_is_refused_whatever_name_leads_to_it(
    way: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    other = tmp_path / "other.db"
    with closing(SqliteFile(file)):
        match way:
            case "the same path":
                other = file
            case "a relative path":
                other = Path("cart.db")
            case "a symlink":
                other.symlink_to(file)
            case "a hard link":
                other.hardlink_to(file)
            case "a linked directory":
                (tmp_path / "linked").symlink_to(tmp_path)
                other = tmp_path / "linked" / "cart.db"
        assert refused(other) == "it is in use by this process"


def test_a_refused_second_opening_leaves_sqlites_own_locks_in_place(file: Path) -> None:
    with closing(SqliteFile(file)), closing(sqlite3.connect(file, isolation_level=None)) as database:
        database.execute("CREATE TABLE t (x)")
        database.execute("BEGIN IMMEDIATE")
        refused(file)
        # Only another process shows it: SQLite keeps account of the locks of its own process.
        script = "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0).execute('BEGIN IMMEDIATE')"
        ended = subprocess.run([sys.executable, "-c", script, file], capture_output=True, text=True, check=False)
        assert "database is locked" in ended.stderr


def test_a_file_with_two_names_is_refused_because_each_name_has_its_own_log(file: Path, tmp_path: Path) -> None:
    SqliteFile(file).close()
    (tmp_path / "other.db").hardlink_to(file)
    assert refused(file).startswith("it has 2 names (hard links)")
    (tmp_path / "other.db").unlink()
    SqliteFile(file).close()


def test_a_file_that_is_mounted_without_its_directory_is_refused(tmp_path: Path) -> None:
    # A mount needs root. A symlink that nobody resolves also leads from one mount to a file of another.
    with TemporaryDirectory(dir="/dev/shm") as shared:
        (tmp_path / "cart.db").symlink_to(Path(shared) / "cart.db")
        with closing(LockedFile(tmp_path / "cart.db")) as file, pytest.raises(OSError, match="mounted without"):
            check_names(file)


def test_a_symlink_leads_to_the_file_and_its_log(file: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "link.db"
    link.symlink_to(file)
    with closing(SqliteFile(link)) as opened:
        assert opened.path == file
    assert file.exists()


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("missing/cart.db", "there is no directory "),
        (".", "it is not a file"),
        ("pipe", "it is not a file"),
        ("loop", "Too many levels of symbolic links"),
        ("a" * 300, "File name too long"),
        ("text/cart.db", "there is no directory "),
    ],
)
def test_what_cannot_be_a_database_file_is_refused(path: str, why: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "text").write_text("no directory")
    assert refused(tmp_path / path).startswith(why)


async def test_all_files_of_a_new_database_are_private(tmp_path: Path) -> None:
    with umask(0o022):
        engine = connect(f"sqlite:///{tmp_path}/cart.db", app.clock)
        await database_setup.upgrade(engine)
        modes = modes_in(tmp_path)
        await engine.close()
    assert modes == dict.fromkeys(("cart.db", "cart.db-wal", "cart.db-shm", "cart.db.lock"), 0o600)


@pytest.mark.parametrize(("before", "after"), [(0o644, 0o600), (0o666, 0o600), (0o604, 0o600), (0o640, 0o640)])
def test_older_files_that_every_user_could_read_become_private(before: int, after: int, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("cart.db", "cart.db-wal", "cart.db-shm")]
    for path in paths:
        path.touch()
        path.chmod(before)
    SqliteFile(paths[0]).close()
    expected = {"cart.db": after, "cart.db-wal": after, "cart.db-shm": after, "cart.db.lock": 0o600}
    assert modes_in(tmp_path) == expected


@pytest.mark.parametrize("replacement", [None, b""], ids=["moved", "replaced"])
async def test_nothing_is_written_once_the_path_leads_elsewhere(
    replacement: bytes | None, store: Store, file: Path
) -> None:
    assert decode(await store.mutate(add())) == {SKU: 1}
    put_aside(file, replacement)
    with pytest.raises(DatabaseUnavailable):
        await store.mutate(add())
    # A second server would find the log of the first one beside its own file.
    assert "it is in use by this process" in refused(file)


@pytest.mark.parametrize("replacement", [None, b""], ids=["removed", "replaced"])
async def test_nothing_is_written_to_a_log_that_was_removed_and_a_stop_saves_it(
    replacement: bytes | None, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/cart.db"
    async with running_store(Settings(database_url=url)) as store:
        assert decode(await store.mutate(add())) == {SKU: 1}
        put_aside(tmp_path / "cart.db-wal", replacement)
        with pytest.raises(DatabaseUnavailable):
            await store.mutate(add())
    with closing(sqlite3.connect(tmp_path / "cart.db")) as database:
        assert database.execute("SELECT total_quantity FROM carts").fetchone() == (1,)


async def test_no_new_connection_opens_the_file_that_replaced_the_database(engine: SqliteEngine, file: Path) -> None:
    await engine.transact(lambda _: None)
    put_aside(file, replacement=b"")
    with pytest.raises(OSError, match="moved, removed or replaced"):
        await engine.read(lambda connection: connection.exec_driver_sql("SELECT 1"))
    with pytest.raises(OSError, match="moved, removed or replaced"):
        async with engine.reader.connect():
            pass


async def test_a_backup_can_be_made_while_the_database_is_in_use(store: Store, file: Path, tmp_path: Path) -> None:
    await store.mutate(add())
    script = (
        "import sqlite3, sys; source, target = map(sqlite3.connect, sys.argv[1:]); source.backup(target); "
        "print(target.execute('SELECT total_quantity FROM carts').fetchone()[0])"
    )
    another = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, file, tmp_path / "backup.db", stdout=asyncio.subprocess.PIPE
    )
    assert (await another.communicate())[0] == b"1\n"
    assert decode(await store.mutate(add())) == {SKU: 2}


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("sqlite:////tmp/a?b.db", "'b.db' follows the '?'"),
        ("sqlite:////tmp/a.db?mode=ro", "'mode' follows the '?'"),
        ("sqlite:///a.db?timeout=1&uri=true", "'timeout' follows the '?'"),
        ("sqlite:///a.db?", "'' follows the '?'"),
        ("sqlite://host/a.db", "without a host"),
        ("sqlite://tmp/a.db", "an absolute path has four slashes"),
        ("sqlite://", "must name a file"),
        ("sqlite:///:memory:", "must name a file"),
        ("sqlite:///a\0.db", "NUL"),
    ],
)
def test_the_part_of_a_url_that_would_be_ignored_is_named(url: str, why: str) -> None:
    with pytest.raises(ValueError, match=re.escape(why)):
        check_url(url, make_url(url))


@pytest.mark.parametrize(
    ("url", "database"),
    [("sqlite:////tmp/a%3Fb.db", "/tmp/a?b.db"), ("sqlite+aiosqlite:///a b#ö.db", "a b#ö.db")],
)
def test_any_file_can_be_named(url: str, database: str) -> None:
    parsed = make_url(url)
    check_url(url, parsed)
    assert parsed.database == database
