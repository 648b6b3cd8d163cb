"""A real https server with a key set. Tests break it, delay it, and count its requests."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trustme
from aiohttp import web

from tests.authentication.issuer import to_key_set


class KeyServer:
    """Serves `body` at `url` with `status` and `headers`, as soon as `open` is set. It starts with an empty set.

    `trust` is a context for clients that trust the server's authority.
    """

    def __init__(self) -> None:
        self.body: bytes | str = to_key_set()
        self.status = 200
        self.headers: dict[str, str] = {}
        self.open = asyncio.Event()
        self.open.set()
        self.requests = 0
        self.waiting = asyncio.Event()
        self.url = ""
        authority = trustme.CA()
        self.trust = ssl.create_default_context()
        authority.configure_trust(self.trust)
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("localhost").configure_cert(self._context)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["KeyServer"]:
        """Listen on a free port of loopback until the block ends."""
        application = web.Application()
        application.router.add_get("/keys", self._answer)
        runner = web.AppRunner(application, shutdown_timeout=0)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=self._context).start()
            self.url = f"https://localhost:{runner.addresses[0][1]}/keys"
            yield self
        finally:
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        self.requests += 1
        self.waiting.set()
        await self.open.wait()
        content = self.body.encode() if isinstance(self.body, str) else self.body
        return web.Response(body=content, status=self.status, headers=self.headers)
