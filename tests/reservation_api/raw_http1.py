"""An HTTP/1 server by hand that answers each call with scripted bytes, for answers that no library sends."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from tests.reservation_api.raw_server import listening

# Answers the call with this method. It may write anything, for as long as it likes.
Answering = Callable[[str, asyncio.StreamWriter], Awaitable[None]]


class RawHttp1:
    """Answers every call with `answering`. It closes a connection if that returns while `closes` is set."""

    url = ""
    closes = False

    def __init__(self, answering: Answering) -> None:
        self.answering = answering
        self.calls = 0

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                lines = head.lower().split(b"\r\n")
                length = next((line for line in lines if line.startswith(b"content-length:")), b":0")
                await reader.readexactly(int(length.split(b":")[1]))
                self.calls += 1
                await self.answering(head.split(b" ")[0].decode(), writer)
                await writer.drain()
                if self.closes:
                    break
        writer.close()


@asynccontextmanager
async def raw_http1(answering: Answering) -> AsyncIterator[RawHttp1]:
    """Serve a RawHttp1 on a free port."""
    raw = RawHttp1(answering)
    async with listening(raw.talk) as port:
        raw.url = f"http://127.0.0.1:{port}"
        yield raw
