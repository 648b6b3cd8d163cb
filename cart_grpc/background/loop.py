"""The loop that all background tasks share: it runs rounds until it is stopped, and logs their errors."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from cart_grpc.carts.refusals import Unavailable

log = logging.getLogger(__name__)
R = TypeVar("R")


class Loop(Generic[R]):
    """Alternates `run_once` and `pause` until stopped. `pause` gets the round's result, None if the round failed.

    A failure ends the round, not the loop: without the reconciler nothing is reserved, without the lease extension
    every long call is made twice, without the sweeper abandoned carts keep their stock. An unavailable database is
    logged when it goes and when it comes back, not in every round.
    """

    def __init__(
        self, name: str, run_once: Callable[[], Awaitable[R]], pause: Callable[[R | None], Awaitable[None]]
    ) -> None:
        self._name = name
        self._run_once = run_once
        self._pause = pause
        self._stopping = False
        self._unavailable = False
        self._ended = asyncio.Event()
        self._ended.set()

    async def run(self) -> None:
        """Run rounds until `stop` or until cancelled."""
        self._ended.clear()
        try:
            while not self._stopping:
                result = await self._run_round()
                if not self._stopping:
                    await self._pause(result)
        finally:
            self._ended.set()

    async def stop(self) -> None:
        """Return once the current round or pause has ended. Cancels neither; the owner wakes its pause if it can."""
        self._stopping = True
        await self._ended.wait()

    async def _run_round(self) -> R | None:
        try:
            result = await self._run_once()
        except Unavailable as refusal:
            if not self._unavailable:
                log.warning("%s: the database is unavailable (%s); retrying", self._name, refusal.reason)
            self._unavailable = True
            return None
        except Exception:
            log.exception("%s: unexpected error; the loop continues", self._name)
            return None
        if self._unavailable:
            log.warning("%s: the database is available again", self._name)
        self._unavailable = False
        return result
