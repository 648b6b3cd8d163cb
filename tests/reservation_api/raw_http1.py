"""An HTTP/1 server by hand that answers each call with scripted bytes, for answers that no library sends."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

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
    tasks: set[asyncio.Task[None]] = set()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(raw.talk(reader, writer))
        tasks.add(task)
        await asyncio.wait([task])
        # What the client has not read is dropped.
        writer.transport.abort()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    raw.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield raw
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # The connections end in the next turns of the event loop.
        for _ in range(3):
            await asyncio.sleep(0)
