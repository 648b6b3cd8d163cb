"""The stock's entries in a file: one line of JSON each, flushed before anybody is answered.

Flushed, not synced: it outlives the process, SIGKILL included, but not a power cut.
"""

import json
import os
from dataclasses import asdict
from io import FileIO
from pathlib import Path
from typing import Any

from cart_grpc.protocol.reservation import Disposition, Intent, Observed
from cart_grpc.simulator.rules import Record
from cart_grpc.simulator.stock import Decided, Entry, StockSet


class Journal:
    """The file at `path`, made if it is not there. One process at a time may have it.

    Reads what an earlier process wrote; a torn last line was never answered for, and is cut off. Raises OSError if the
    file cannot be read and written, and ValueError, naming the line, if it holds anything else than a journal.
    """

    def __init__(self, path: Path) -> None:
        self.entries: list[Entry] = []
        self._file = FileIO(path, "a+")
        try:
            self._size = self._read(path)
            self._file.truncate(self._size)
        except BaseException:
            self._file.close()
            raise

    def write(self, entry: Entry) -> None:
        """Append `entry`. Raises OSError if it cannot be kept; then nothing of it stays in the file."""
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
        """Close the file."""
        self._file.close()

    def _read(self, path: Path) -> int:
        self._file.seek(0, os.SEEK_SET)
        content = self._file.readall()
        complete = content.rfind(b"\n") + 1
        for number, line in enumerate(content[:complete].splitlines(), start=1):
            try:
                self.entries.append(_from_json(json.loads(line)))
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"line {number} of {path} is not a journal's: {error!r}") from None
        return complete


def _to_json(entry: Entry) -> dict[str, Any]:
    if isinstance(entry, StockSet):
        return {"type": "stock", **asdict(entry)}
    record = entry.record
    intent = record.intent
    return {
        "type": "decision",
        "time": entry.time,
        "reservation_id": intent.reservation_id,
        "revision": intent.revision,
        "disposition": intent.disposition.name,
        "state": record.state.name,
        "sku": record.sku,
        "granted": record.granted,
        "granted_revision": record.granted_revision,
        "expire_time": record.expire_time,
        "reason": record.reason,
        "asked": {
            "sku": intent.sku,
            "quantity": intent.quantity,
            "ttl_us": intent.ttl_us,
            "labels": dict(intent.labels),
        },
    }


def _from_json(value: dict[str, Any]) -> Entry:
    if value["type"] == "stock":
        return StockSet(time=value["time"], sku=value["sku"], total=value["total"])
    asked = value["asked"]
    intent = Intent(
        reservation_id=value["reservation_id"],
        revision=value["revision"],
        sku=asked["sku"],
        quantity=asked["quantity"],
        disposition=Disposition[value["disposition"]],
        ttl_us=asked["ttl_us"],
        labels=asked["labels"],
    )
    record = Record(
        intent=intent,
        state=Observed[value["state"]],
        sku=value["sku"],
        granted=value["granted"],
        granted_revision=value["granted_revision"],
        expire_time=value["expire_time"],
        reason=value["reason"],
    )
    return Decided(value["time"], record)
