"""An HTTP/2 server by hand that answers each gRPC call with scripted frames, for answers that no library sends."""

import asyncio
import struct
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from tests.attacks.wire import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PING,
    PREFACE,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
)
from tests.reservation_api.raw_server import listening

MAX_FRAME = 16_384
GRPC = {":status": "200", "content-type": "application/grpc"}


def fields(values: Mapping[str, str | bytes]) -> bytes:
    """Encode header fields with HPACK, as literals without indexing."""
    return b"".join(b"\0" + _text(name) + _text(value) for name, value in values.items())


def _text(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    if len(data) < 127:
        return bytes((len(data),)) + data
    rest, length = len(data) - 127, b"\x7f"
    while rest >= 128:
        length += bytes((rest % 128 + 128,))
        rest //= 128
    return length + bytes((rest,)) + data


def headers(values: Mapping[str, str | bytes], stream: int, *, end: bool = False) -> bytes:
    """Frames with header fields."""
    block = fields(values)
    parts = [block[start : start + MAX_FRAME] for start in range(0, len(block), MAX_FRAME)] or [b""]
    frames = []
    for number, part in enumerate(parts):
        kind, flags = (CONTINUATION, 0) if number else (HEADERS, END_STREAM if end else 0)
        frames.append(frame(kind, flags | (END_HEADERS if number == len(parts) - 1 else 0), stream, part))
    return b"".join(frames)


def data(payload: bytes, stream: int, *, end: bool = False) -> bytes:
    """Frames with data."""
    parts = [payload[start : start + MAX_FRAME] for start in range(0, len(payload), MAX_FRAME)] or [b""]
    last = len(parts) - 1
    return b"".join(
        frame(DATA, END_STREAM if end and number == last else 0, stream, part) for number, part in enumerate(parts)
    )


def message(payload: bytes, *, compressed: int = 0, length: int | None = None) -> bytes:
    """A gRPC message. `length`: the length that it claims to have."""
    return bytes((compressed,)) + struct.pack(">I", len(payload) if length is None else length) + payload


# Makes the frames that answer the call on a stream.
Make = Callable[[int], Iterable[bytes]]


def _make_nothing(_stream: int) -> Iterable[bytes]:
    return ()


@dataclass
class RawHttp2:
    """Answers each call with the frames of `make`, then closes, or sends `endless` for ever if it is not empty."""

    port: int = 0
    calls: int = 0
    make: Make = _make_nothing
    endless: bytes = b""
    closes: bool = False

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await reader.readexactly(len(PREFACE))
            writer.write(frame(SETTINGS))
            while True:
                start = await reader.readexactly(9)
                payload = await reader.readexactly(int.from_bytes(start[:3]))
                kind, flags, stream = start[3], start[4], int.from_bytes(start[5:])
                if kind in (SETTINGS, PING) and not flags & ACK:
                    writer.write(frame(kind, ACK, 0, payload if kind == PING else b""))
                if kind == DATA and payload:
                    writer.write(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", len(payload))))
                if kind == DATA and flags & END_STREAM:
                    self.calls += 1
                    writer.writelines(self.make(stream))
                    if self.closes:
                        break
                    while self.endless:
                        writer.write(self.endless)
                        await writer.drain()
                        await asyncio.sleep(0)
                await writer.drain()
        writer.close()


@asynccontextmanager
async def raw_http2() -> AsyncIterator[RawHttp2]:
    """Serve a RawHttp2 on a free port."""
    raw = RawHttp2()
    async with listening(raw.talk) as port:
        raw.port = port
        yield raw
