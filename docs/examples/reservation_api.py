"""An example of a Reservation API: the contract over HTTP, on SQLite, with nothing but the standard library.

`decide` has the rules: it is a pure function of the earlier decision and the request. `Stock` makes each decision in a
transaction, and `Handler` speaks HTTP. Numbers in brackets are rules of the contract. The example never forgets a
reservation (7), and offers no batches and no reads, which are optional. A real API also checks who calls.
"""

import argparse
import json
import re
import sqlite3
import threading
import time
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

HOLD, COMMIT, RELEASE = "DISPOSITION_HOLD", "DISPOSITION_COMMIT", "DISPOSITION_RELEASE"
HELD, REJECTED, COMMITTED, RELEASED = "STATE_HELD", "STATE_REJECTED", "STATE_COMMITTED", "STATE_RELEASED"
LEAST = {HOLD: 1, COMMIT: 1, RELEASE: 0}  # quantity
SECOND = 10**9
ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
SCHEMA = """
PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
CREATE TABLE IF NOT EXISTS stock (sku TEXT PRIMARY KEY, available INTEGER);
CREATE TABLE IF NOT EXISTS reservations (
  id TEXT PRIMARY KEY, revision INTEGER, sku TEXT, quantity INTEGER, disposition TEXT, ttl INTEGER,
  state TEXT, granted_sku TEXT, granted INTEGER, expire_time INTEGER, reason TEXT);
CREATE INDEX IF NOT EXISTS holds ON reservations (expire_time) WHERE expire_time IS NOT NULL;
"""
STORE = "INSERT OR REPLACE INTO reservations VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
EXPIRE = (
    """UPDATE stock SET available = available + (SELECT sum(granted) FROM reservations WHERE granted_sku = stock.sku
       AND expire_time <= :now) WHERE sku IN (SELECT granted_sku FROM reservations WHERE expire_time <= :now)""",
    """UPDATE reservations SET state = CASE state WHEN 'STATE_HELD' THEN 'STATE_EXPIRED' ELSE state END, granted = 0,
       expire_time = NULL WHERE expire_time <= :now""",
)


class Request(NamedTuple):
    """A reservation as it should be. All but `id` and `revision` is its body (1). `ttl` is in nanoseconds."""

    id: str
    revision: int
    sku: str
    quantity: int
    disposition: str
    ttl: int


class Decision(NamedTuple):
    """The latest request about an id, and the decision. `expire_time` is in nanoseconds, None if nothing is held."""

    request: Request
    state: str
    granted_sku: str
    granted: int
    expire_time: int | None = None
    reason: str = ""


class ApiError(Exception):
    """An answer without a decision. `current` is the decision on a higher revision."""

    def __init__(self, reason: str, message: str, current: Decision | None = None) -> None:
        super().__init__(message)
        self.reason, self.current = reason, current


def decide(before: Decision | None, request: Request, available: int | None, now: int) -> Decision:
    """Decide a revision for the first time. `available` units of the sku are neither held nor sold; None: unknown."""
    if before and before.state in (COMMITTED, RELEASED):  # final (4)
        return before._replace(request=request)
    if request.disposition == RELEASE:  # also of an unknown id (2), and whatever its sku is (3)
        return Decision(request, RELEASED, request.sku, 0)
    held, held_sku = (before.granted, before.granted_sku) if before and before.granted else (0, request.sku)
    until = before.expire_time if before else None
    if request.disposition == HOLD:  # a renewal never shortens a hold (5), and a refused one extends it (3)
        until = max(now + request.ttl, until or 0)
    reason = "OUT_OF_STOCK" if request.quantity - held > (available or 0) else ""
    reason = "SKU_CHANGED" if held_sku != request.sku else reason
    reason = "UNKNOWN_SKU" if available is None else reason
    if reason:  # the earlier hold stays (3)
        return Decision(request, REJECTED, held_sku, held, until if held else None, reason)
    if request.disposition == COMMIT:  # exactly this quantity, with or without a hold (4)
        return Decision(request, COMMITTED, request.sku, request.quantity)
    return Decision(request, HELD, request.sku, request.quantity, until)


class Stock:
    """The stock and the reservations in a SQLite file. A lock lets one transaction run at a time (6)."""

    def __init__(self, path: str, units: dict[str, str]) -> None:
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.executescript(SCHEMA)
        self._db.executemany("INSERT OR IGNORE INTO stock VALUES (?, ?)", units.items())

    def apply(self, request: Request) -> Decision:
        """Decide `request`, or repeat the decision. COMMIT makes it durable before it is answered (6)."""
        now = time.time_ns()
        with self._lock, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            for statement in EXPIRE:
                self._db.execute(statement, {"now": now})
            before = self._find(request.id)
            if before and request.revision < before.request.revision:
                raise ApiError("REVISION_OVERTAKEN", "a higher revision was decided", before)
            if before and request.revision == before.request.revision:
                if request != before.request:
                    raise ApiError("REVISION_BODY_MISMATCH", "decided for another body")
                return before
            row = self._db.execute("SELECT available FROM stock WHERE sku = ?", (request.sku,)).fetchone()
            after = decide(before, request, row[0] if row else None, now)
            if before:
                self._take(before.granted_sku, -before.granted)
            self._take(after.granted_sku, after.granted)
            self._db.execute(STORE, (*after.request, *after[1:]))
            return after

    def _find(self, reservation_id: str) -> Decision | None:
        row = self._db.execute("SELECT * FROM reservations WHERE id = ?", (reservation_id,)).fetchone()
        return Decision(Request(*row[:6]), *row[6:]) if row else None

    def _take(self, sku: str, units: int) -> None:
        self._db.execute("UPDATE stock SET available = available - ? WHERE sku = ?", (units, sku))


def read(content: bytes) -> Request:
    """Return the request in a body, and ignore unknown fields (8). Raises ApiError."""
    try:
        message = json.loads(content)["reservation"]
        seconds, _, fraction = message.get("ttl", "0s").removesuffix("s").partition(".")
        request = Request(
            str(message["reservationId"]),
            int(message["revision"]),  # a JSON string or number (8)
            message["sku"].encode().decode(),  # no half of a character
            int(message.get("quantity", 0)),
            str(message["disposition"]),
            int(seconds) * SECOND + int(fraction.ljust(9, "0")),  # 60s and 60.000s are equal (1)
        )
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise ApiError("MALFORMED", f"no valid reservation: {error!r}") from None
    is_valid = ID.fullmatch(request.id) and request.sku and 1 <= request.revision <= 2**53 and 0 <= request.ttl < 2**63
    if not is_valid or not LEAST.get(request.disposition, 2**31) <= request.quantity < 2**31:
        raise ApiError("INVALID_FIELD", "a field is out of its bounds")
    if request.disposition == HOLD and not SECOND <= request.ttl <= 25 * 3600 * SECOND:
        raise ApiError("INVALID_FIELD", "ttl must be 1 second to 25 hours")
    return request


def write(decision: Decision) -> dict[str, Any]:
    """Return the message with a decision."""
    reservation_id, revision, sku, quantity, disposition, ttl = decision.request
    message = {"reservationId": reservation_id, "revision": str(revision), "sku": sku, "quantity": quantity}
    message |= {"disposition": disposition, "ttl": f"{ttl // SECOND}.{ttl % SECOND:09}s"}
    message |= {"state": decision.state, "grantedQuantity": decision.granted, "reason": decision.reason}
    if decision.expire_time is not None:
        message["expireTime"] = datetime.fromtimestamp(decision.expire_time // 1000 / 10**6, UTC).isoformat()
    return message


class Handler(BaseHTTPRequestHandler):
    """PUT /v1/reservations/{reservationId}. The base class answers every other method with 501."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    stock: Stock

    def do_PUT(self) -> None:
        """Apply a reservation."""
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            request = read(content)
            if self.path != f"/v1/reservations/{request.id}":
                raise ApiError("INVALID_FIELD", "the path names another id")
            self._answer(200, {"reservation": write(self.stock.apply(request))})
        except ApiError as error:
            code, status = (409, "ABORTED") if error.current else (400, "INVALID_ARGUMENT")
            described = {"code": code, "status": status, "reason": error.reason, "message": str(error)}
            current = {"reservation": write(error.current)} if error.current else {}
            self._answer(code, {"error": described, **current})

    def _answer(self, status: int, message: dict[str, Any]) -> None:
        data = json.dumps(message).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--listen", default="127.0.0.1:8080", metavar="HOST:PORT")
    options.add_argument("--database", default="stock.db", metavar="FILE")
    options.add_argument("--stock", action="append", default=[], metavar="SKU=N", help="units of a new sku")
    parsed = options.parse_args()
    host, _, port = parsed.listen.rpartition(":")
    Handler.stock = Stock(parsed.database, dict(each.rsplit("=", 1) for each in parsed.stock))
    ThreadingHTTPServer.request_queue_size = 128  # cart_grpc opens many connections at once
    server = ThreadingHTTPServer((host, int(port)), Handler)
    print(f"listening on http://{host}:{server.server_port}", flush=True)
    server.serve_forever()
