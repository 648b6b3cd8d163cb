"""A SQLite file belongs to one process: every other one ends with status 2 and one line, whatever name it uses."""

import sqlite3
from contextlib import closing
from pathlib import Path

import grpc

from tests.processes.harness import LISTENS, Program, Programs, connected
from tests.processes.test_surroundings import NOT_SERVING, refused, until_health


def start(programs: Programs, *command: str, file: Path) -> Program:
    return programs.start(
        *command,
        listen="127.0.0.1:0",
        database_url=f"sqlite:///{file}",
        reservation_url="grpc://127.0.0.1:1",
    )


async def test_every_command_refuses_a_file_that_a_server_uses_by_any_name(programs: Programs) -> None:
    folder = programs.folder
    file, hard, soft = (folder / name for name in ("cart.db", "hard.db", "soft.db"))
    server = start(programs, "serve", file=file)
    async with connected((await server.says(LISTENS))[1]) as client:
        await client.add()
        hard.hardlink_to(file)
        soft.symlink_to(file)
        others = [
            (start(programs, *command, file=name), name)
            for command, name in (
                (["serve"], file),
                (["serve"], hard),
                (["dev", "--simulator-listen", "127.0.0.1:0"], soft),
                (["migrate"], hard),
                (["reservations", "after-restore"], soft),
            )
        ]
        for other, name in others:
            assert await other.ended(30) == 2
            found = file if name == soft else name
            reason = "it is in use by another process; several processes need PostgreSQL"
            assert other.errors == f"cart-grpc: CART_DATABASE_URL: {found} cannot be used: {reason}\n"
        # The file has its locks still, and only one log.
        assert (await client.add()).quantity == 2
        assert not (folder / "hard.db-wal").exists()
    server.kill()
    assert (folder / "cart.db-wal").exists()
    # The log of a killed server stands beside one name only.
    late = start(programs, "serve", file=hard)
    assert await late.ended(30) == 2
    assert "it has 2 names (hard links)" in late.errors


def restore_a_backup(file: Path) -> None:
    """Put a backup in the place of the file, which a server uses."""
    backup = file.with_name("backup.db")
    with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(backup)) as target:
        source.backup(target)
    backup.replace(file)


async def test_a_server_whose_file_was_replaced_writes_nothing_and_keeps_the_new_file_from_others(
    programs: Programs,
) -> None:
    file = programs.folder / "cart.db"
    server = start(programs, "serve", file=file)
    async with connected((await server.says(LISTENS))[1]) as client:
        await client.add()
        restore_a_backup(file)
        refusal = await refused(client, "users/u/carts/default")
        assert refusal == (grpc.StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE")
        await until_health(client, NOT_SERVING)
        second = start(programs, "serve", file=file)
        assert await second.ended(30) == 2
        assert "is in use by another process" in second.errors
        assert "it was moved, removed or replaced" in server.errors
