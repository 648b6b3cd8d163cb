"""The issuer's keys, kept up to date."""

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from types import TracebackType
from typing import Final, Self

from cart_grpc.authentication.key_sources import KeySource
from cart_grpc.authentication.keys import Key, KeysNotLoaded, parse_keys
from cart_grpc.authentication.refusals import Fault, KeysUnavailable, TokenInvalid
from cart_grpc.logs import events
from cart_grpc.logs.log import Log

log = Log(__name__)
# The pauses after failed loads double from the first value to the last.
FIRST_RETRY_SECONDS: Final = 1.0
MAX_RETRY_SECONDS: Final = 60.0
# Calls that wait for a load because of an unknown `kid`. More are refused: a flood of them must not fill the server.
MAX_WAITING: Final = 100


class KeySet:
    """The usable keys of the key set in `source`, for `algorithms`. `clock` is a monotonic clock in seconds.

    As a context manager it loads the set in the background, at regular intervals; entering it does not wait. A load
    that fails keeps the keys of the one before, for as long as it takes. A set without usable keys replaces the one
    before, so that an issuer can withdraw all its keys. `generation` is another number after each change of the keys.
    """

    def __init__(
        self, source: KeySource, algorithms: Collection[str], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.algorithms = frozenset(algorithms)
        self.generation = 0
        self._source = source
        self._clock = clock
        self._content = b""
        self._keys: Sequence[Key] = ()
        self._by_kid: dict[str | None, Key] = {}
        self._load_time: float | None = None
        self._loading: asyncio.Task[None] | None = None
        self._running: asyncio.Task[None] | None = None
        self._waiting = 0
        self._failures = 0
        self._failing_since = 0.0
        self._causes: set[str] = set()

    async def __aenter__(self) -> Self:
        self._running = asyncio.create_task(self.run(), name="token-keys")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        tasks = [task for task in (self._running, self._loading) if task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def run(self) -> None:
        """Load the set at regular intervals until cancelled."""
        while True:
            await self.load()
            await asyncio.sleep(self.pause_seconds)

    @property
    def pause_seconds(self) -> float:
        """The time to wait before the next load, in seconds."""
        if not self._failures:
            return self._source.refresh_seconds
        retry = min(FIRST_RETRY_SECONDS * 2.0 ** min(self._failures - 1, 10), MAX_RETRY_SECONDS)
        return min(retry, self._source.refresh_seconds)

    async def load(self) -> None:
        """Load the set now, or wait for the load that is running. A failure is logged, not raised."""
        if self._loading is None:
            self._load_time = self._clock()
            self._loading = asyncio.create_task(self._load(), name="load-token-keys")
        # Not awaited directly: a call that is cancelled while it waits must not cancel the load of the others.
        await asyncio.wait([self._loading])

    async def get(self, kid: str | None) -> Key:
        """Return the key with this `kid`; for None, the only key.

        For an unknown `kid` it loads the set first, at most every `gap_seconds` of the source.

        Raises TokenInvalid if there is no such key. Raises KeysUnavailable if there is no key at all, if the last load
        failed, so that nobody knows whether the key exists, or if too many calls wait for the load.
        """
        key = self._find(kid)
        if key is None and (kid is not None or not self._keys):
            await self._load_for_unknown()
            key = self._find(kid)
        if key is not None:
            return key
        if not self._keys or (kid is not None and self._failures):
            raise KeysUnavailable
        raise TokenInvalid(Fault.KEY_ID_MISSING if kid is None else Fault.UNKNOWN_KEY)

    def _find(self, kid: str | None) -> Key | None:
        if kid is None:
            return self._keys[0] if len(self._keys) == 1 else None
        return self._by_kid.get(kid)

    async def _load_for_unknown(self) -> None:
        is_early = self._load_time is not None and self._clock() - self._load_time < self._source.gap_seconds
        if self._loading is None and is_early:
            return
        if self._waiting >= MAX_WAITING:
            raise KeysUnavailable
        self._waiting += 1
        try:
            await self.load()
        finally:
            self._waiting -= 1

    async def _load(self) -> None:
        try:
            self._accept(await self._source.read())
        except KeysNotLoaded as error:
            self._note_failure(str(error))
        except Exception as error:  # noqa: BLE001 - the next load may succeed; without the loop, no new key is known
            log(events.TOKEN_KEYS_ERROR, "CART_TOKEN_KEYS: unexpected error", exc_info=error)
            self._note_failure(type(error).__name__)
        else:
            self._note_success()
        finally:
            self._loading = None

    def _accept(self, content: bytes) -> None:
        """Take the keys in `content`. Raises KeysNotLoaded."""
        if content == self._content:
            return
        keys, unused = parse_keys(content, self.algorithms)
        self._content = content
        for key in unused:
            event = events.TOKEN_KEY_IGNORED if key.is_ordinary else events.TOKEN_KEY_REFUSED
            log(event, "CART_TOKEN_KEYS: %s", key)
        if not keys:
            text = "CART_TOKEN_KEYS: the set has no usable key; calls with tokens are refused"
            log(events.TOKEN_KEYS_EMPTY, text)
        if keys != self._keys:
            self._keys, self._by_kid = keys, {key.kid: key for key in keys}
            self.generation += 1
            log(events.TOKEN_KEYS_LOADED, "CART_TOKEN_KEYS: %d usable keys", len(keys))

    def _note_failure(self, cause: str) -> None:
        if not self._failures:
            self._failing_since = self._clock()
        self._failures += 1
        if cause not in self._causes:
            self._causes.add(cause)
            kept = "the keys of the last load are kept" if self._keys else "calls with tokens are refused"
            log(events.TOKEN_KEYS_FAILING, "CART_TOKEN_KEYS cannot be loaded, %s: %s", kept, cause)

    def _note_success(self) -> None:
        if self._failures:
            seconds = self._clock() - self._failing_since
            text = "CART_TOKEN_KEYS is loaded again after %.1f s and %d failures"
            log(events.TOKEN_KEYS_RECOVERED, text, seconds, self._failures)
        self._failures = 0
        self._causes.clear()
