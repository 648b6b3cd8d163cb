"""The loop that all background tasks share: it runs rounds until it is stopped, and logs their errors."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from cart_grpc.carts.refusals import Unavailable
from cart_grpc.logs import events
from cart_grpc.store.failure_log import FailureLog

R = TypeVar("R")


class Loop(Generic[R]):
    """Alternates `run_once` and `pause` until stopped. `pause` gets the round's result, None if the round failed.

    A failure ends the round, not the loop: without the reconciler nothing is reserved, without the lease extension
    every long call is made twice, without the sweeper abandoned carts keep their stock. The store logs an unavailable
    database. Other errors are logged when they begin and when they are over, not in every round.
    """

    def __init__(
        self, name: str, run_once: Callable[[], Awaitable[R]], pause: Callable[[R | None], Awaitable[None]]
    ) -> None:
        self._run_once = run_once
        self._pause = pause
        self._stopping = False
        self._failures = FailureLog(
            events.LOOP_FAILING, events.LOOP_RECOVERED, f"{name}: unexpected error", f"{name}: no more errors"
        )
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
        except Unavailable:
            return None
        except Exception as error:  # noqa: BLE001 - the next round may succeed
            self._failures.note_failure(error)
            return None
        self._failures.note_success()
        return result
