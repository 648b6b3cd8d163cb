"""A TCP proxy that a test can cut or hang, between a replica and PostgreSQL or the Reservation API."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

Open = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


class Wire:
    """Forwards connections to `port` in both directions. While it is cut, it resets every connection."""

    def __init__(self, open_far_end: Open) -> None:
        self._open_far_end = open_far_end
        self._ends: set[asyncio.StreamWriter] = set()
        self._forwarding = asyncio.Event()
        self._forwarding.set()
        self.is_cut = False
        self.port = 0

    def cut(self) -> None:
        """Reset all connections, and every new one until `mend`."""
        self.is_cut = True
        for end in self._ends:
            # abort, not close: bytes in flight are lost, too.
            end.transport.abort()

    def hang(self) -> None:
        """Forward nothing and close nothing until `mend`."""
        self._forwarding.clear()

    def mend(self) -> None:
        """Forward again."""
        self.is_cut = False
        self._forwarding.set()

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward one connection until either side closes it."""
        if self.is_cut:
            writer.transport.abort()
            return
        far_reader, far_writer = await self._open_far_end()
        ends = {writer, far_writer}
        self._ends |= ends
        try:
            await asyncio.gather(self._forward(reader, far_writer), self._forward(far_reader, writer))
        finally:
            self._ends -= ends
            for end in ends:
                end.transport.abort()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                await self._forwarding.wait()
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.transport.abort()


@asynccontextmanager
async def wired(open_far_end: Open) -> AsyncIterator[Wire]:
    """Yield a proxy to the far end, listening on its own port of 127.0.0.1."""
    wire = Wire(open_far_end)
    server = await asyncio.start_server(wire.connect, "127.0.0.1", 0)
    wire.port = server.sockets[0].getsockname()[1]
    try:
        yield wire
    finally:
        server.close()
        wire.mend()
        wire.cut()
