"""A wire that a test can cut: between a replica and its database, or between a replica and the Reservation API."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

Open = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


class Wire:
    """Passes on what is sent to `port`, both ways. While it is cut, connections are closed as soon as they are made."""

    def __init__(self, open_far_end: Open) -> None:
        self._open_far_end = open_far_end
        self._ends: set[asyncio.StreamWriter] = set()
        self._passing = asyncio.Event()
        self._passing.set()
        self.is_cut = False
        self.port = 0

    def cut(self) -> None:
        """Reset every connection that there is, and those that are made until `mend`."""
        self.is_cut = True
        for end in self._ends:
            # What is on its way is lost, too.
            end.transport.abort()

    def hang(self) -> None:
        """Pass nothing on, and close nothing, until `mend`."""
        self._passing.clear()

    def mend(self) -> None:
        """Pass everything on again."""
        self.is_cut = False
        self._passing.set()

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until either side ends it."""
        if self.is_cut:
            writer.transport.abort()
            return
        far_reader, far_writer = await self._open_far_end()
        ends = {writer, far_writer}
        self._ends |= ends
        try:
            await asyncio.gather(self._pass(reader, far_writer), self._pass(far_reader, writer))
        finally:
            self._ends -= ends
            for end in ends:
                end.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                await self._passing.wait()
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.transport.abort()


@asynccontextmanager
async def wired(open_far_end: Open) -> AsyncIterator[Wire]:
    """A wire to the far end, with a port of its own on this machine."""
    wire = Wire(open_far_end)
    server = await asyncio.start_server(wire.connect, "127.0.0.1", 0)
    wire.port = server.sockets[0].getsockname()[1]
    try:
        yield wire
    finally:
        server.close()
        wire.mend()
        wire.cut()
