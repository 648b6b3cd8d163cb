"""Replies that gRPC keeps because their callers do not read them.

HTTP/2 lets the peer decide how much it is sent, and gRPC has no time-out for a reply: with three connections that read
nothing, 1,200 replies of 366 KB took 290 MiB until the connections ended. No such call can be ended from here, because
gRPC accepts no status while it sends a reply. So a connection whose replies are not read gets no further ones.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import grpc

from cart_grpc.carts.refusals import Overloaded

Context = grpc.aio.ServicerContext[Any, Any]
# Below this, nobody is refused. Replies on their way in a fast network take less than a MiB.
FREE_BYTES: Final = 8 * 1024 * 1024
MAX_BYTES: Final = 256 * 1024 * 1024
# Any connection may have this much, so that those that read are served even while others hold the maximum.
MIN_SHARE_BYTES: Final = 128 * 1024
# An open call with its task.
CALL_BYTES: Final = 27 * 1024


class Unread:
    """Counts the bytes of unread replies, and limits the share of each connection.

    A connection may have a quarter of the bytes left of MAX_BYTES. So a few connections cannot use all of them.
    """

    def __init__(self) -> None:
        self._total = 0
        self._connections: Counter[str] = Counter()
        # Counted in the total, although most of them have been sent. To look after each reply costs 2 % of a call.
        self._recent: list[tuple[asyncio.Task[Any], int]] = []

    def check(self, context: Context) -> None:
        """Raise Overloaded if the connection of this call has its share of unread replies already."""
        if self._total >= FREE_BYTES:
            share = max((MAX_BYTES - self._total) // 4, MIN_SHARE_BYTES)
            if self._connections[context.peer()] >= share:
                raise Overloaded(_UNREAD)

    @contextmanager
    def writing(self, message: bytes, context: Context) -> Iterator[None]:
        """Count a message of a stream until the block, which writes it, ends. Raises Overloaded as `check` does."""
        self.check(context)
        connection, size = context.peer(), 2 * len(message)
        self._total += size
        self._connections[connection] += size
        try:
            yield
        finally:
            self._remove(connection, size)

    def add(self, reply: bytes, context: Context) -> None:
        """Count the reply of the current task until gRPC has sent it."""
        task = asyncio.current_task()
        assert task  # noqa: S101 - gRPC runs each call in a task, which ends once the reply is sent
        # Python and gRPC keep a copy each.
        size = CALL_BYTES + 2 * len(reply)
        is_quiet = self._total < FREE_BYTES
        self._total += size
        if not is_quiet:
            self._look_after(task, size, context.peer())
            return
        self._recent.append((task, size))
        if self._total >= FREE_BYTES:
            self._sort_out()

    def _sort_out(self) -> None:
        """Subtract the replies that have been sent, and look after the others."""
        recent, self._recent = self._recent, []
        for task, size in recent:
            if task.done():
                self._total -= size
            else:
                self._look_after(task, size, "")

    def _look_after(self, task: "asyncio.Task[Any]", size: int, connection: str) -> None:
        self._connections[connection] += size
        task.add_done_callback(partial(self._remove, connection, size))

    def _remove(self, connection: str, size: int, _: Any = None) -> None:
        self._total -= size
        self._connections[connection] -= size
        if not self._connections[connection]:
            del self._connections[connection]


_UNREAD = "this connection does not read its replies; read them, and try again"
