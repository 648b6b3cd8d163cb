"""Real PgBouncers for the tests: on loopback, as the user that PostgreSQL runs as."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.ports import free_port
from tests.postgres import SUPERUSER, PostgresServer, process_owner, shared_temporary_folder

READY_SECONDS = 20.0


@dataclass(frozen=True)
class PgBouncer:
    """A running PgBouncer at `address`, HOST:PORT."""

    address: str
    _file: Path
    _pid: int

    def change(self, before: str, after: str) -> None:
        """Replace a line of the configuration, and load it."""
        lines = self._file.read_text()
        assert before in lines
        self._file.write_text(lines.replace(before, after))
        os.kill(self._pid, signal.SIGHUP)


@contextmanager
def running_pgbouncer(server: PostgresServer, **settings: str) -> Iterator[PgBouncer]:
    """Yield a PgBouncer with `settings` in front of `server`, for any role and database."""
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        raise RuntimeError("pgbouncer is not installed: run `make debian-packages`")
    folder = Path(tempfile.mkdtemp(prefix="pgb-", dir=shared_temporary_folder()))
    port = int(settings.setdefault("listen_port", str(free_port())))
    _configure(folder, server, settings)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, folder / "pgbouncer.ini"], cwd=folder, stdout=log, stderr=log, **process_owner()
        )
    try:
        _wait_until_ready(process, port, folder)
        yield PgBouncer(f"127.0.0.1:{port}", folder / "pgbouncer.ini", process.pid)
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _configure(folder: Path, server: PostgresServer, settings: Mapping[str, str]) -> None:
    fixed = {
        "listen_addr": "127.0.0.1",
        "unix_socket_dir": "",
        # Any password is right, and every session at the server is the superuser's.
        "auth_type": "any",
        **settings,
    }
    lines = [
        "[databases]",
        f"* = host={server.directory} user={SUPERUSER}",
        "[pgbouncer]",
        *(f"{name} = {value}" for name, value in fixed.items()),
    ]
    (folder / "pgbouncer.ini").write_text("\n".join(lines) + "\n")
    owner = process_owner()
    if owner:
        os.chown(folder, owner["user"], owner["group"])
        (folder / "pgbouncer.ini").chmod(0o644)


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, folder: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            time.sleep(0.01)
        else:
            return
    raise RuntimeError(f"PgBouncer does not listen: {(folder / 'log').read_text()[-2000:]}")
