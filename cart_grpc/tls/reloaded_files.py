"""Files that are replaced while the process runs, such as certificates and tokens: read, and read again.

No error shows a path or a content: a secret that stands in the setting for a path would be in the log.
"""

import logging
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, TypeVar

log = logging.getLogger(__name__)
T = TypeVar("T")
CHECK_SECONDS: Final = 1.0
_MAX_BYTES: Final = 1 << 20
# RFC 6750 allows fewer characters, but some servers have tokens of their own kind.
_TOKEN: Final = re.compile(r"[!-~]+")
_MAX_TOKEN: Final = 8192


class Unreadable(Exception):
    """A file has no usable content. The text is the fault, without the name of the file."""


class FileError(Exception):
    """A file cannot be used. The text is one line: the setting or option that names the file, and the fault."""


@dataclass(frozen=True, slots=True)
class NamedFile:
    """The file at `path`. `name` is the setting or option that has the path."""

    name: str
    path: str

    def read(self) -> bytes:
        """Return the content, 1 MiB at most. Raises FileError."""
        try:
            return read_file(self.path, _MAX_BYTES)
        except Unreadable as fault:
            raise self.fault(str(fault)) from None

    def read_text(self) -> str:
        """Return the content as UTF-8, without the line ends at its end, such as a password. Raises FileError.

        Raises FileError also if the text is empty or contains a control character.
        """
        try:
            text = self.read().decode().rstrip("\r\n")
        except UnicodeDecodeError:
            raise self.fault("the file is not UTF-8") from None
        if not text:
            raise self.fault("the file is empty")
        if any(letter < " " or "\x7f" <= letter <= "\x9f" for letter in text):
            raise self.fault("the file contains a control character, such as a line end before its last line")
        return text

    def read_token(self) -> str:
        """Return the content as a bearer token, without the line ends at its end. Raises FileError."""
        token = self.read_text()
        if len(token) > _MAX_TOKEN or not _TOKEN.fullmatch(token):
            raise self.fault(f"a token must be one word of at most {_MAX_TOKEN} visible ASCII characters")
        return token

    def fault(self, why: str) -> FileError:
        """Return, not raise, the error that says why the file cannot be used."""
        return FileError(f"{self.name}: {why}")


def read_file(path: str | Path, max_bytes: int) -> bytes:
    """Return the content of the file at `path`. Raises Unreadable, also if it is longer than `max_bytes`."""
    try:
        with open(path, "rb", opener=_open) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise Unreadable("it is not a file")
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise Unreadable(f"the file cannot be read: {error.strerror}") from None
    except ValueError:
        raise Unreadable("it is not a path") from None
    if len(content) > max_bytes:
        raise Unreadable(f"it is longer than {max_bytes >> 10} KiB")
    return content


class Reloaded(Generic[T]):
    """A value that `load` makes from `files`. It is made again when one of them has changed.

    If `load` raises FileError, the last value stays in use, and the log says so once. `clock` is a monotonic clock in
    seconds. Threads may share the object.

    Raises FileError if the first value cannot be made.
    """

    def __init__(
        self, files: Sequence[NamedFile], load: Callable[[], T], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._files = files
        self._load = load
        self._clock = clock
        self._lock = threading.Lock()
        self._fault = ""
        before = self._look()
        self._value = load()
        # None: somebody is writing, so the parts of the value may not fit together.
        self._seen = before if before == self._look() else None
        self._check_time = clock() + CHECK_SECONDS

    def get(self) -> T:
        """Return the newest value. Looks at the files once a second at most.

        While another thread looks, it returns the last value at once: a file system may hang.
        """
        if self._clock() >= self._check_time and self._lock.acquire(blocking=False):
            try:
                self._check_time = self._clock() + CHECK_SECONDS
                self._check()
            finally:
                self._lock.release()
        return self._value

    def _check(self) -> None:
        seen = self._look()
        if seen != self._seen:
            try:
                value = self._load()
            except FileError as error:
                self._note(str(error))
                return
            if seen != self._look():
                return
            self._value, self._seen = value, seen
            log.info("%s: a changed file is in use now", self._names())
        elif self._fault:
            log.warning("%s: the earlier file is back", self._names())
        self._fault = ""

    def _note(self, fault: str) -> None:
        # A broken file is read at each check; only a new fault is news.
        if fault != self._fault:
            log.error("%s; the earlier files stay in use", fault)
        self._fault = fault

    def _look(self) -> list[object]:
        return [_identify(file.path) for file in self._files]

    def _names(self) -> str:
        return ", ".join(file.name for file in self._files)


def _open(path: str, flags: int) -> int:
    # O_NONBLOCK: to open a named pipe would block until somebody writes to it.
    return os.open(path, flags | os.O_NONBLOCK)


def _identify(path: str) -> object:
    """Return what changes when a file is replaced or written, also through a symbolic link; None if it is not there."""
    try:
        found = os.stat(path)  # noqa: PTH116 - the text of a setting
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
