"""The shard that pings ask. Its node may be away while those of the other shards answer."""

from collections.abc import Awaitable, Callable
from contextlib import suppress

from cart_grpc.carts.refusals import DatabaseUnavailable


class PingedShard:
    """One of `count` shards, by its number: another one after each ping that fails."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._number = 0

    async def ask(self, ping: Callable[[int], Awaitable[object]]) -> None:
        """Ping the shard, and the next one if that fails: a process that is not ready gets no calls for any shard."""
        if self._count > 1:
            with suppress(DatabaseUnavailable):
                await self._ask(ping)
                return
        await self._ask(ping)

    async def _ask(self, ping: Callable[[int], Awaitable[object]]) -> None:
        try:
            await ping(self._number)
        except BaseException:
            # A ping that is cancelled hung.
            self._number = (self._number + 1) % self._count
            raise
