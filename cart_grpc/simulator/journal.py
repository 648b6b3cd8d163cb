"""The log entries of the stock in a file: one line of JSON each, written before the simulator answers.

Entries are written to the operating system but not synced to disk: they survive a crash of the process, including
SIGKILL, but not a power failure.
"""

import json
import os
from dataclasses import asdict
from io import FileIO
from pathlib import Path
from typing import Any

from cart_grpc.files import LockedFile
from cart_grpc.protocol.reservation import Disposition, Intent, Observed
from cart_grpc.simulator.rules import StoredReservation
from cart_grpc.simulator.stock import Decided, Entry, StockSet


class Journal:
    """The journal at `path`, created if it does not exist, with the mode 0600, and locked against other processes.

    Reads the entries of earlier processes. An incomplete last line was never answered, so it is cut off. Raises OSError
    if the file cannot be read or written, and ValueError, which names the line, if a line is not a journal entry.
    """

    def __init__(self, path: Path) -> None:
        self._lock = LockedFile(path, flags=os.O_APPEND)
        self._file = FileIO(self._lock.descriptor, "r+", closefd=False)
        try:
            self.entries, self._size = read_entries(path)
            self._file.truncate(self._size)
        except BaseException:
            self.close()
            raise

    def write(self, entry: Entry) -> None:
        """Append `entry`. Raises OSError if that fails; the file is then as it was before."""
        line = json.dumps(_to_json(entry), separators=(",", ":")).encode() + b"\n"
        try:
            written = self._file.write(line)
            if written != len(line):
                raise OSError("the journal's disk is full")  # noqa: TRY301 - undone below like any other failure
        except OSError:
            self._file.truncate(self._size)
            raise
        self._size += len(line)

    def close(self) -> None:
        """Close and unlock the file."""
        self._file.close()
        self._lock.close()


def read_entries(path: Path) -> tuple[list[Entry], int]:
    """Return the entries of all complete lines, and the size of these lines in bytes. Raises as Journal does."""
    content = path.read_bytes()
    complete = content.rfind(b"\n") + 1
    entries = []
    for number, line in enumerate(content[:complete].splitlines(), start=1):
        try:
            entries.append(_from_json(json.loads(line)))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"line {number} of {path} is not a journal entry: {error!r}") from None
    return entries, complete


def _to_json(entry: Entry) -> dict[str, Any]:
    if isinstance(entry, StockSet):
        return {"type": "stock", **asdict(entry)}
    stored = entry.reservation
    intent = stored.intent
    return {
        "type": "decision",
        "time": entry.time,
        "reservation_id": intent.reservation_id,
        "revision": intent.revision,
        "disposition": intent.disposition.name,
        "state": stored.state.name,
        "sku": stored.sku,
        "granted": stored.granted,
        "granted_revision": stored.granted_revision,
        "expire_time": stored.expire_time,
        "reason": stored.reason,
        "intent": {
            "sku": intent.sku,
            "quantity": intent.quantity,
            "ttl_us": intent.ttl_us,
            "labels": dict(intent.labels),
        },
    }


def _from_json(value: dict[str, Any]) -> Entry:
    if value["type"] == "stock":
        return StockSet(time=value["time"], sku=value["sku"], total=value["total"])
    body = value["intent"]
    intent = Intent(
        reservation_id=value["reservation_id"],
        revision=value["revision"],
        sku=body["sku"],
        quantity=body["quantity"],
        disposition=Disposition[value["disposition"]],
        ttl_us=body["ttl_us"],
        labels=body["labels"],
    )
    stored = StoredReservation(
        intent=intent,
        state=Observed[value["state"]],
        sku=value["sku"],
        granted=value["granted"],
        granted_revision=value["granted_revision"],
        expire_time=value["expire_time"],
        reason=value["reason"],
    )
    return Decided(value["time"], stored)
