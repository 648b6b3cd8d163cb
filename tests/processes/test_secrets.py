"""A running server has the database's password in no output and in no argument of a process."""

import signal

import psutil

from tests.processes.harness import LISTENS, Programs
from tests.processes.test_starting import WAITS, until_logged

SECRET = "hunter2"


async def test_the_password_is_in_no_output_and_in_no_argument(programs: Programs, shared_url: str) -> None:
    """With workers, because each gets the settings from its parent."""
    programs.preloaded = False  # a fork has no arguments of its own
    program = programs.start(
        "serve", "--workers", "2", listen="127.0.0.1:0", database_url=f"{shared_url}&password={SECRET}",
        reservation_url="grpc://127.0.0.1:1", log_level="DEBUG", lame_duck="0",
    )  # fmt: skip
    await program.says(LISTENS)
    processes = [psutil.Process(program.pid), *psutil.Process(program.pid).children(recursive=True)]
    assert len(processes) > 2
    assert not [process for process in processes if SECRET in f"{process.cmdline()} {process.name()}"]
    program.send(signal.SIGTERM)
    assert await program.ended(20) == 0
    assert "stopped" in program.errors
    assert SECRET not in program.output + program.errors


async def test_the_password_is_in_no_output_while_the_database_is_away(programs: Programs) -> None:
    url = f"postgresql://cart:{SECRET}@127.0.0.1:1,127.0.0.1:1/shop"
    program = programs.start("serve", listen="127.0.0.1:0", database_url=url, log_level="DEBUG", lame_duck="0")
    await until_logged(program, WAITS.pattern)
    program.send(signal.SIGTERM)
    assert await program.ended(20) == 0
    assert "cart:***@" in program.errors
    assert SECRET not in program.output + program.errors
