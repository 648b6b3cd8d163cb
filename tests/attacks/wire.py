"""HTTP/2 frames by hand, for sequences that no client library sends."""

import asyncio
import ssl
import struct
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
ACK, END_STREAM, END_HEADERS = 1, 1, 4
MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE = 3, 4
CANCEL = struct.pack(">I", 8)
WINDOW = 65_535
MAX_FRAME = 16_384


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def header(name: str, value: str) -> bytes:
    """One header field (HPACK literal without indexing) of ASCII characters."""
    return b"\0" + b"".join(_length(len(text)) + text.encode() for text in (name, value))


def _length(length: int) -> bytes:
    """An integer with a prefix of seven bits (RFC 7541, 5.1)."""
    if length < 127:
        return bytes((length,))
    rest, encoded = length - 127, bytearray((127,))
    while rest >= 128:
        encoded.append(rest % 128 + 128)
        rest //= 128
    return bytes((*encoded, rest))


def call_of(path: str, token: str = "") -> bytes:
    """The headers of a gRPC call."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "localhost",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    if token:
        fields["authorization"] = f"Bearer {token}"
    return b"".join(header(name, value) for name, value in fields.items())


def message(length: int) -> bytes:
    """The prefix of a gRPC message of `length` bytes."""
    return b"\0" + struct.pack(">I", length)


class Wire:
    """One connection. It counts the frames that arrive; with `is_polite` it answers SETTINGS and PING."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_polite: bool) -> None:
        self._reader, self._writer = reader, writer
        self.is_polite = is_polite
        self._began = time.monotonic()
        self.seen: Counter[int] = Counter()
        self.settings: dict[int, int] = {}
        self.farewell = ""
        self.ended_after = 0.0
        self.connection_window = WINDOW
        self.granted: Counter[int] = Counter()
        self.refused: set[int] = set()
        self.ended_streams: set[int] = set()
        self._reading = asyncio.create_task(self._read())

    @property
    def has_ended(self) -> bool:
        """Whether the server has closed it."""
        return self._reading.done()

    async def send(self, frames: Iterable[bytes]) -> None:
        """Write, and wait while the server does not read. Do nothing once the connection has ended."""
        with suppress(OSError):
            self._writer.write(b"".join(frames))
            await self._writer.drain()
        # Let the other tasks of this event loop run.
        await asyncio.sleep(0)

    async def ended(self, seconds: float) -> str:
        """Wait until the server has closed the connection; return the text of its GOAWAY. Raises TimeoutError."""
        await asyncio.wait_for(asyncio.shield(self._reading), seconds)
        return self.farewell

    async def close(self) -> None:
        self._reading.cancel()
        self._writer.close()
        await asyncio.gather(self._reading, return_exceptions=True)

    async def _read(self) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            while True:
                start = await self._reader.readexactly(9)
                payload = await self._reader.readexactly(int.from_bytes(start[:3]))
                self._take(start[3], start[4], int.from_bytes(start[5:]), payload)
        self.ended_after = time.monotonic() - self._began

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        self.seen[kind] += 1
        if kind == RST_STREAM or (kind in (HEADERS, DATA) and flags & END_STREAM):
            self.ended_streams.add(stream)
        if kind == SETTINGS and not flags & ACK:
            self.settings |= dict(struct.iter_unpack(">HI", payload))
        elif kind == WINDOW_UPDATE and stream:
            self.granted[stream] += int.from_bytes(payload)
        elif kind == WINDOW_UPDATE:
            self.connection_window += int.from_bytes(payload)
        elif kind == RST_STREAM:
            self.refused.add(stream)
        elif kind == GOAWAY:
            self.farewell = payload[8:].decode()
        if kind in (SETTINGS, PING) and not flags & ACK and self.is_polite:
            self._writer.write(frame(kind, ACK, 0, payload if kind == PING else b""))


@asynccontextmanager
async def wired(
    address: str,
    greeting: bytes = PREFACE + frame(SETTINGS),
    *,
    is_polite: bool = True,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Wire]:
    """A connection to HOST:PORT that sends `greeting` first; with `tls`, after a handshake for localhost."""
    host, _, port = address.rpartition(":")
    name = "localhost" if tls else None
    reader, writer = await asyncio.open_connection(host, int(port), ssl=tls, server_hostname=name)
    wire = Wire(reader, writer, is_polite=is_polite)
    try:
        writer.write(greeting)
        yield wire
    finally:
        await wire.close()
