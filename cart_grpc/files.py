"""Files that only one process may use and only its user may read."""

import errno
import os
import stat
import threading
from pathlib import Path

_PRIVATE = 0o600
# The files that this process has locked, as (device, inode).
_locked: set[tuple[int, int]] = set()
_opening = threading.Lock()


class LockedFile:
    """The file at `path`, created if it does not exist, and locked against other processes and against this one.

    The lock is on the file, not on its name: every link and mount that leads to the file finds it. Without
    `across_processes`, the lock is only against this process. A new file has the mode 0600, and an older one that every
    user could read or write gets it. `flags` are further flags of `open`.

    Raises OSError, BlockingIOError if another process uses the file.
    """

    def __init__(self, path: Path, *, flags: int = 0, across_processes: bool = True) -> None:
        self.path = path
        with _opening:
            self.descriptor = _open(path, flags, lock=across_processes)
            self._identity = identify(os.fstat(self.descriptor))
            _locked.add(self._identity)

    @property
    def link_count(self) -> int:
        """The number of names that the file has."""
        return os.fstat(self.descriptor).st_nlink

    @property
    def is_in_place(self) -> bool:
        """Whether `path` still leads to this file."""
        try:
            return identify(self.path.stat()) == self._identity
        except OSError:
            return False

    def close(self) -> None:
        """Unlock the file."""
        with _opening:
            _locked.discard(self._identity)
            os.close(self.descriptor)


def identify(found: os.stat_result) -> tuple[int, int]:
    """Return what distinguishes a file from all others, whatever its name: the device and the inode."""
    return found.st_dev, found.st_ino


def make_private(path: Path) -> None:
    """Give the file at `path`, if it exists, the mode 0600, unless other users have no rights to it already.

    Raises OSError if it belongs to another user.
    """
    try:
        found = path.stat()
        if found.st_mode & stat.S_IRWXO:
            path.chmod(_PRIVATE)
    except FileNotFoundError:
        return
    except PermissionError:
        reason = "every user has rights to it, and only its owner can change that: chmod o= it"
        raise OSError(errno.EPERM, reason, str(path)) from None


def check_usable(path: Path) -> None:
    """Raise OSError if `path` leads to something else than a file, or to a file that this process has locked.

    It does not open the file. Closing any descriptor of a file drops all POSIX locks that this process has on it, and
    those are SQLite's. So a locked file must not be opened again, not even to find that it is locked.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        return
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is not a file", str(path))
    if identify(found) in _locked:
        raise OSError(errno.EBUSY, "it is in use by this process", str(path))


def _open(path: Path, flags: int, *, lock: bool) -> int:
    check_usable(path)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | flags, _PRIVATE)
    try:
        if lock:
            _lock(descriptor)
        make_private(path)
    except BaseException as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise BlockingIOError(error.errno, "it is in use by another process", str(path)) from None
        raise
    return descriptor


def _lock(descriptor: int) -> None:
    try:
        import fcntl  # noqa: PLC0415 - not available on Windows
    except ImportError:
        raise OSError(errno.ENOTSUP, "files can be locked on Linux and macOS only") from None
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
