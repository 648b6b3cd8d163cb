"""A client of WatchCart for thousands of streams: HTTP/2 by hand. Python's gRPC client costs more than the server."""

import asyncio
import struct
from collections.abc import Callable, Sequence

from cartgrpc.v1 import cart_service_pb2 as pb

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
ACK, END_STREAM, END_HEADERS = 1, 1, 4
_WINDOW = 2**30
_INITIAL_WINDOW_SIZE = 4

# Gets the cart's name and the message.
OnMessage = Callable[[str, pb.WatchCartResponse], None]


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def _header(name: str, value: str) -> bytes:
    return b"\0" + b"".join(bytes((len(text),)) + text.encode() for text in (name, value))


_HEADERS = b"".join(
    _header(*field)
    for field in (
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/cartgrpc.v1.CartService/WatchCart"),
        (":authority", "localhost"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
    )
)


class Connection(asyncio.Protocol):
    """One connection that watches the carts `names`. `ended` counts streams that are over."""

    def __init__(self, names: Sequence[str], on_message: OnMessage) -> None:
        self._names = names
        self._on_message = on_message
        self._data = bytearray()
        self._partial: dict[int, bytearray] = {}
        self._unacknowledged = 0
        self.ended = 0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - a TCP connection
        self._transport = transport
        settings = _frame(SETTINGS, 0, 0, struct.pack(">HI", _INITIAL_WINDOW_SIZE, _WINDOW))
        transport.write(PREFACE + settings + _frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", _WINDOW)))
        for number, name in enumerate(self._names):
            body = pb.WatchCartRequest(name=name).SerializeToString()
            stream = 2 * number + 1
            data = b"\0" + struct.pack(">I", len(body)) + body
            transport.write(_frame(HEADERS, END_HEADERS, stream, _HEADERS) + _frame(DATA, END_STREAM, stream, data))

    def data_received(self, data: bytes) -> None:
        self._data += data
        position, have = 0, self._data
        while len(have) - position >= 9:
            length = int.from_bytes(have[position : position + 3])
            end = position + 9 + length
            if len(have) < end:
                break
            stream = int.from_bytes(have[position + 5 : position + 9])
            self._take(have[position + 3], have[position + 4], stream, bytes(have[position + 9 : end]))
            position = end
        del have[:position]

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended = len(self._names)

    def close(self) -> None:
        if self._transport:
            self._transport.abort()

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == DATA:
            self._unacknowledged += len(payload)
            if self._unacknowledged > _WINDOW // 4:
                self._write(_frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", self._unacknowledged)))
                self._unacknowledged = 0
            self._take_message(stream, payload)
        elif kind in (SETTINGS, PING) and not flags & ACK:
            self._write(_frame(kind, ACK, 0, payload if kind == PING else b""))
        if kind == RST_STREAM or (kind in (HEADERS, DATA) and flags & END_STREAM):
            self.ended += 1

    def _take_message(self, stream: int, payload: bytes) -> None:
        partial = self._partial.setdefault(stream, bytearray())
        partial += payload
        while len(partial) >= 5 and len(partial) >= 5 + (length := int.from_bytes(partial[1:5])):
            message = pb.WatchCartResponse.FromString(bytes(partial[5 : 5 + length]))
            del partial[: 5 + length]
            self._on_message(self._names[stream // 2], message)
        if not partial:
            del self._partial[stream]

    def _write(self, data: bytes) -> None:
        if self._transport:
            self._transport.write(data)


async def connect(address: str, names: Sequence[str], on_message: OnMessage) -> Connection:
    """Watch the carts on one connection."""
    host, _, port = address.rpartition(":")
    _, connection = await asyncio.get_running_loop().create_connection(
        lambda: Connection(names, on_message), host, int(port)
    )
    return connection
