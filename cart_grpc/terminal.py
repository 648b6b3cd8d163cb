"""Text for terminals and logs: whatever others wrote is shown, and nothing of it is obeyed."""

import io
import os
import re
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from contextlib import suppress

# As a shell reports a program that SIGPIPE ended.
CLOSED_PIPE = 141
# Python calls these printable, but they are blank or change the character before: fillers and variation selectors.
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)


def escape(text: str) -> str:
    r"""Return `text` as one line without invisible characters: they become Python's escapes, such as `\u200b`.

    Invisible are control characters and line ends, characters without a width or that change the direction of the text,
    all spaces but the ordinary one, surrogates and unassigned characters.
    """
    if text.isprintable() and not _INVISIBLE.search(text):
        return text
    return "".join(
        letter if letter.isprintable() and not _INVISIBLE.match(letter) else ascii(letter)[1:-1] for letter in text
    )


def to_table(rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the rows as lines with aligned columns."""
    table = [[_to_shown(cell) for cell in row] for row in rows]
    widths = [max(map(_width, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(cell + " " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]


def prepare() -> None:
    """Let standard output and error escape what their encoding does not have, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(*lines: str) -> None:
    """Print the lines, escaped. Raises SystemExit as `flush` does."""
    write("".join(f"{escape(line)}\n" for line in lines))


def complain(text: object) -> None:
    """Print `text` to standard error, as one line of this program."""
    if sys.stderr is not None:
        with suppress(OSError):
            print(f"cart-grpc: {escape(str(text))}", file=sys.stderr, flush=True)


def flush() -> None:
    """Write out what others have printed. Raises SystemExit if it cannot be written, or if nobody reads it any more."""
    write("")


def write(text: str) -> None:
    """Print `text` as it is: everything in it that others wrote must be escaped. Raises SystemExit as `flush` does."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        # Python flushes once more at exit, and would print that this fails.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise SystemExit(CLOSED_PIPE) from None
        complain(f"the output cannot be written: {error.strerror}")
        raise SystemExit(1) from None


def _to_shown(cell: str) -> str:
    """Return the cell as the terminal shows it."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return escape(cell).encode(encoding, "backslashreplace").decode(encoding)


def _width(text: str) -> int:
    """Return the number of columns that the text takes."""
    if text.isascii():
        return len(text)
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text if _has_width(letter))


def _has_width(letter: str) -> bool:
    return unicodedata.category(letter) not in ("Mn", "Me")
