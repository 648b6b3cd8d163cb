"""The file of a SQLite database: which URLs name one, and what must hold before SQLite may open it."""

import errno
import os
import sys
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

from cart_grpc.files import LockedFile, check_usable, identify, make_private

if TYPE_CHECKING:
    from sqlalchemy import URL


def check_url(text: str, url: "URL") -> None:
    """Check the URL of a SQLite file, as written and as parsed. Raises ValueError, which names the part at fault."""
    if "?" in text:
        # SQLAlchemy drops a parameter without a value, so the parsed URL may have fewer.
        parameter = text.partition("?")[2].partition("=")[0].partition("&")[0]
        raise ValueError(
            f"a SQLite URL has no parameters, but {parameter!r} follows the '?'; write %3F for a '?' in a file's name"
        )
    if url.host or url.username or url.password or url.port:
        raise ValueError("must be sqlite:///FILE, without a host; an absolute path has four slashes")
    if not url.database or url.database == ":memory:":
        raise ValueError("must name a file, sqlite:///FILE: an in-memory database is lost when the process ends")
    if "\0" in url.database:
        raise ValueError("the name of a file has no NUL character")


class SqliteFile:
    """The file at `path`, locked for as long as this object is open.

    Open it before SQLite does, and close it after SQLite has closed its last connection: closing any descriptor of a
    file drops SQLite's own locks on it. Raises OSError if the file cannot be used, or not without losing data.
    """

    def __init__(self, path: Path) -> None:
        if not path.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, f"there is no directory {path.parent}", str(path))
        # SQLite resolves links, too, and keeps its log beside the file itself.
        self.path = Path(os.path.realpath(path))
        self._log: tuple[int, int] | None = None
        check_usable(self.path)
        try:
            self._lock()
        except BlockingIOError as error:
            reason = f"{error.strerror}; several processes need PostgreSQL"
            raise BlockingIOError(error.errno, reason, str(self.path)) from None

    def _lock(self) -> None:
        with ExitStack() as locks:
            # The lock on the name refuses a file that was put in the place of a file in use: both have the same log.
            locks.enter_context(closing(LockedFile(_beside(self.path, ".lock"))))
            # The lock on the file refuses every other name of it. Only Linux keeps it apart from SQLite's own locks.
            self._file = LockedFile(self.path, across_processes=sys.platform == "linux")
            locks.enter_context(closing(self._file))
            check_names(self._file)
            for suffix in ("-wal", "-shm"):
                # An earlier release made them for every user to read. SQLite gives new ones the mode of the database.
                make_private(_beside(self.path, suffix))
            self._locks = locks.pop_all()

    @property
    def has_log(self) -> bool:
        """Whether a log with transactions stands beside the file. A server that stops with SIGTERM leaves none."""
        log = _beside(self.path, "-wal")
        return log.exists() and log.stat().st_size > 0

    def check(self) -> None:
        """Raise OSError if the file was moved, removed or replaced: further writes would be lost."""
        if not self._file.is_in_place:
            reason = "it was moved, removed or replaced while the server used it; restart the server"
            raise OSError(errno.ESTALE, reason, str(self.path))

    def check_log(self) -> None:
        """Raise OSError if the log was removed or replaced since `renew_log`. Call it within a transaction."""
        try:
            found = identify(_beside(self.path, "-wal").stat())
        except OSError:
            found = None
        self._log = self._log or found
        if found is None or found != self._log:
            reason = "its log was removed or replaced; stop the server with SIGTERM, which saves what the log had"
            raise OSError(errno.ESTALE, reason, str(self.path))

    def renew_log(self) -> None:
        """Expect another log: SQLite may make one for a new connection."""
        self._log = None

    def close(self) -> None:
        """Unlock the file."""
        self._locks.close()


def check_names(file: LockedFile) -> None:
    """Raise OSError if the file has other names: SQLite keeps the log, with the last commits, beside the name."""
    if file.link_count > 1:
        reason = (
            f"it has {file.link_count} names (hard links), and SQLite would keep a log beside each; remove the others"
        )
        raise OSError(errno.EMLINK, reason, str(file.path))
    directory = os.open(file.path.parent, os.O_RDONLY)
    try:
        is_mounted = _mount_of(file.descriptor) != _mount_of(directory)
    finally:
        os.close(directory)
    if is_mounted:
        reason = "it is mounted without its directory, and SQLite keeps a log beside it; mount the directory"
        raise OSError(errno.EXDEV, reason, str(file.path))


def _mount_of(descriptor: int) -> str:
    """Return the number of the mount that the descriptor was opened through; empty if the system does not tell it."""
    try:
        lines = Path(f"/proc/self/fdinfo/{descriptor}").read_text(encoding="ascii").splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith("mnt_id:")), "")


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)
