"""A real https server with a key set. Tests break it, delay it, and count its requests."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import trustme
from aiohttp import web

from tests.authentication.issuer import to_key_set


class KeyServer:
    """Serves `body` at `url` with `status` and `headers`. `requests` counts, and `asked` is set by each request.

    With `is_endless` it sends spaces until the client leaves. `trust` is for clients that trust its `authority`.
    """

    def __init__(self) -> None:
        self.url = ""
        self.asked = asyncio.Event()
        self._is_open = asyncio.Event()
        self.reset(to_key_set())
        self._authority = trustme.CA()
        self.trust = ssl.create_default_context()
        self._authority.configure_trust(self.trust)
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._authority.issue_cert("localhost").configure_cert(self._context)

    def write_authority(self, file: Path) -> Path:
        """Write the certificate of the server's authority to `file` and return it."""
        self._authority.cert_pem.write_to_path(file)
        return file

    def reset(self, body: bytes | str) -> None:
        """Serve `body`, at once, and count from 0."""
        self.body = body
        self.status = 200
        self.headers: dict[str, str] = {}
        self.is_endless = False
        self.requests = 0
        self.answer()

    def hold(self) -> None:
        """Answer no request until `answer`."""
        self.asked.clear()
        self._is_open.clear()

    def answer(self) -> None:
        """Answer the requests that wait, and all others at once."""
        self._is_open.set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["KeyServer"]:
        """Listen on a free port of loopback until the block ends."""
        application = web.Application()
        application.router.add_get("/keys", self._answer)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=self._context).start()
            self.url = f"https://localhost:{runner.addresses[0][1]}/keys"
            yield self
        finally:
            self.answer()
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        self.asked.set()
        await self._is_open.wait()
        if self.is_endless:
            return await _send_without_end(request)
        content = self.body.encode() if isinstance(self.body, str) else self.body
        return web.Response(body=content, status=self.status, headers=self.headers)


async def _send_without_end(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    with suppress(ConnectionError):
        await response.prepare(request)
        # A write to a connection that is gone need not fail, and need not let others run.
        while request.transport is not None and not request.transport.is_closing():
            await response.write(b" " * 65_536)
            await asyncio.sleep(0)
    return response
