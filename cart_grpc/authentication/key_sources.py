"""The sources of a JSON Web Key Set: a file, or an https URL. Each read returns the whole content."""

import asyncio
import ssl
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import urlsplit
from urllib.request import url2pathname

from cart_grpc.authentication.keys import KeysNotLoaded
from cart_grpc.terminal import escape
from cart_grpc.tls.reloaded_files import Unreadable, read_file

MAX_BYTES: Final = 262_144
FETCH_SECONDS: Final = 5.0
_MAX_CAUSE_LENGTH: Final = 300
# No compression: 256 KiB could expand to 256 MiB.
_HEADERS: Final = {"Accept": "application/jwk-set+json, application/json", "Accept-Encoding": "identity"}


class KeySource(Protocol):
    """A place with a key set. It is read every `refresh_seconds`, and at most every `gap_seconds` for unknown keys."""

    refresh_seconds: float
    gap_seconds: float

    async def read(self) -> bytes:
        """Return the content, at most MAX_BYTES. Raises KeysNotLoaded."""
        ...


class FileSource:
    """The file at `path`. It may be replaced or rewritten at any time."""

    def __init__(self, path: Path) -> None:
        self.refresh_seconds = 2.0
        self.gap_seconds = 0.5
        self._path = path

    async def read(self) -> bytes:
        """Return the content of the file. Raises KeysNotLoaded."""
        try:
            # In a thread: the file system may be a network's.
            return await asyncio.to_thread(read_file, self._path, MAX_BYTES)
        except Unreadable as fault:
            raise KeysNotLoaded(str(fault)) from None


class UrlSource:
    """An https URL. `context` has the trusted authorities; None: OpenSSL's own, which SSL_CERT_FILE can replace.

    Redirects are not followed.
    """

    def __init__(self, url: str, context: ssl.SSLContext | None = None) -> None:
        # Imported here because it takes a tenth of a server's start time, and not during a call.
        import aiohttp  # noqa: PLC0415

        self.refresh_seconds = 300.0
        self.gap_seconds = 5.0
        self._url = url
        self._context = context or ssl.create_default_context()
        self._aiohttp = aiohttp

    async def read(self) -> bytes:
        """Fetch the key set within FETCH_SECONDS. Raises KeysNotLoaded."""
        try:
            # A session for each fetch: they are minutes apart.
            async with (
                asyncio.timeout(FETCH_SECONDS),
                self._aiohttp.ClientSession(headers=_HEADERS, auto_decompress=False) as session,
                session.get(self._url, ssl=self._context, allow_redirects=False) as response,
            ):
                if response.status != 200:
                    raise KeysNotLoaded(f"HTTP status {response.status} instead of 200")
                content = bytearray()
                async for chunk in response.content.iter_any():
                    content += chunk
                    if len(content) > MAX_BYTES:
                        break
                return _check_size(content)
        except TimeoutError:
            raise KeysNotLoaded(f"no answer within {FETCH_SECONDS:g} s") from None
        except (self._aiohttp.ClientError, OSError, ValueError) as error:
            raise KeysNotLoaded(_show(error)) from None


def key_source(location: str) -> KeySource:
    """Return the source at `location`: an https:// URL, a file:// URL, or the path of a file."""
    if location.startswith("https://"):
        return UrlSource(location)
    if location.startswith("file://"):
        return FileSource(Path(url2pathname(urlsplit(location).path)))
    return FileSource(Path(location))


def _check_size(content: bytes | bytearray) -> bytes:
    if len(content) > MAX_BYTES:
        raise KeysNotLoaded(f"it is longer than {MAX_BYTES >> 10} KiB")
    return bytes(content)


def _show(error: Exception) -> str:
    """Return the cause on one line. Only the system's errors are shown with their text: others may have the URL."""
    text = f"{type(error).__name__}: {error}" if isinstance(error, OSError) else type(error).__name__
    return escape(text)[:_MAX_CAUSE_LENGTH]
