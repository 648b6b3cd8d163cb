"""Real PgBouncers for the tests: on loopback, as the user that PostgreSQL runs as."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

from tests.postgres import SUPERUSER, PostgresServer, process_owner, shared_temporary_folder

READY_SECONDS = 20.0


@contextmanager
def running_pgbouncer(server: PostgresServer, **settings: str) -> Iterator[str]:
    """Yield the address, HOST:PORT, of a PgBouncer with `settings` in front of `server`, for any role and database."""
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        raise RuntimeError("pgbouncer is not installed: run `make debian-packages`")
    folder = Path(tempfile.mkdtemp(prefix="pgb-", dir=shared_temporary_folder()))
    port = int(settings.setdefault("listen_port", str(_free_port())))
    _configure(folder, server, settings)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, folder / "pgbouncer.ini"], cwd=folder, stdout=log, stderr=log, **process_owner()
        )
    try:
        _wait_until_ready(process, port, folder)
        yield f"127.0.0.1:{port}"
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


def _free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        return int(listening.getsockname()[1])


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
