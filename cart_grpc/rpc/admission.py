"""Admission: which calls run, which wait, and which are rejected. A server that starts too much finishes nothing.

- The number of running calls is bounded. At the bound, a further call is rejected before its request is received. A
  rejection costs 0.8 of an empty call, nearly all of it inside gRPC: our layers take 2.4 us of it, or 7 us for a call
  that is rejected after its request was received. So this bound is high, and HTTP/2's limit on the streams of one
  connection keeps most of a flood out (see `server`).
- The number of one user's running calls is bounded. Further calls of that user queue for a slot, which costs nothing:
  a user who floods the server only slows itself down. The queue is shorter than a connection, so that a flood leaves
  room for other users on its connection. With a queue of 500, a flood of twice the capacity on one shared connection
  made a third to four fifths of the other users' calls fail. With 70 none fails, as long as the server rejects calls
  as fast as the flood sends them. Long calls weigh more: a user whose last reply was long gets fewer slots. Eight
  readers of a cart of 180 KB that changes all the time raise the median of another user's GetCart from 2 to 9 ms;
  without the weight, to 15 ms.
- Waiting calls hold no slot. They wait in a queue for a slot, or they are parked: in max_wait, for a reservation. The
  number of waiting calls is bounded, too: beyond it, calls that need a slot are rejected, and calls in max_wait are
  answered with the current state. A call with a long request counts as several.
- A service that calls for many users has a share of the slots, and the same share of the room for waiting calls. Beyond
  it, its calls are rejected. Its calls for a user take none of the slots that this user has for its own calls. Several
  services that flood the server together can take all slots.
- Open streams hold no slot either. Their number is bounded per user, per service, per connection and in all.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from cart_grpc.carts.refusals import Overloaded, ShuttingDown, TooManyCalls, TooManyStreams
from cart_grpc.metrics import CALLS, CALLS_LIMIT

# A call weighs one more for each of these in its request or reply.
BYTES_PER_WEIGHT = 32 * 1024


def _weight(size: int) -> int:
    return 1 + size // BYTES_PER_WEIGHT


class _Service:
    """The calls of one service, for all its users: how many run, and how many wait."""

    __slots__ = ("name", "running", "waiting")

    def __init__(self, name: str) -> None:
        self.name = name
        self.running = 0
        self.waiting = 0


class _User:
    """The calls of one user: how many run, how many wait, and the queue for a slot, oldest first.

    At most `slots` of them run. The user of a service is another one than the user of the same id without a service.
    """

    __slots__ = ("key", "queue", "running", "service", "slots", "waiting")

    def __init__(self, key: tuple[str, str], slots: int, service: _Service | None) -> None:
        self.key = key
        self.slots = slots
        self.service = service
        self.running = 0
        self.waiting = 0
        self.queue: dict[asyncio.Future[None], None] = {}


class Admission:
    """The unary calls of one server, or of several.

    At most `max_calls` run and `max_waiting` wait; of each service at most `max_calls_per_service`, and the same share
    of `max_waiting`; of each user at most `max_calls_per_user` and `max_waiting_per_user`. A call is a task;
    `take_slot`, `note_reply`, `park` and `free_slot` apply to the current task.
    """

    def __init__(
        self,
        *,
        max_calls: int,
        max_calls_per_service: int,
        max_calls_per_user: int,
        max_waiting: int,
        max_waiting_per_user: int,
    ) -> None:
        self._max_calls = max_calls
        self._max_calls_per_service = min(max_calls_per_service, max_calls)
        self._max_calls_per_user = max_calls_per_user
        self._max_waiting = max_waiting
        self._max_waiting_per_service = max_waiting * self._max_calls_per_service // max(max_calls, 1)
        self._max_waiting_per_user = max_waiting_per_user
        self._services: dict[str, _Service] = {}
        self._users: dict[tuple[str, str], _User] = {}
        self._running: dict[asyncio.Task[Any] | None, _User] = {}
        self._parked: dict[asyncio.Task[Any] | None, tuple[_User, int]] = {}
        # Only of calls that weigh more than 1.
        self._weights: dict[asyncio.Task[Any] | None, int] = {}
        self.running = 0
        self.waiting = 0

    @property
    def is_full(self) -> bool:
        """Whether every slot is taken. If so, the next call of any user is rejected."""
        return self.running >= self._max_calls

    def sample(self) -> None:
        """Set the gauges of the calls."""
        CALLS.labels("running").set(self.running)
        CALLS.labels("waiting").set(self.waiting)
        CALLS_LIMIT.labels("running").set(self._max_calls)
        CALLS_LIMIT.labels("waiting").set(self._max_waiting)

    async def take_slot(self, user: str, size: int, service: str = "") -> None:
        """Take a slot for a call with a request of `size` bytes; wait for one if the user has no slot left.

        `service` is the one that calls for the user; "" if the user calls itself. Raises Overloaded or TooManyCalls.
        """
        if self.is_full:
            raise Overloaded
        mine = self._users.get((service, user)) or self._new_user(service, user)
        weight = _weight(size)
        if mine.running >= mine.slots:
            await self._queue(mine, weight)
        elif mine.service and mine.service.running >= self._max_calls_per_service:
            self._forget_if_idle(mine)
            raise TooManyCalls("service", self._max_calls_per_service)
        else:
            self._count_running(mine, 1)
        task = asyncio.current_task()
        self._running[task] = mine
        if weight > 1:
            self._weights[task] = weight

    def note_reply(self, size: int) -> None:
        """Note that the reply has `size` bytes: the user's next calls probably cost the same."""
        if mine := self._running.get(asyncio.current_task()):
            mine.slots = max(self._max_calls_per_user // _weight(size), 1)

    def park(self) -> bool:
        """Give the slot back before a wait. Return False, and keep the slot, if too many calls wait already."""
        task = asyncio.current_task()
        mine = self._running.get(task)
        if mine is None:
            return True
        weight = self._weights.get(task, 1)
        if not self._may_wait(mine, weight):
            return False
        self._count_waiting(mine, weight)
        self._parked[task] = mine, weight
        del self._running[task]
        self._pass_slot_on(mine)
        return True

    def free_slot(self) -> None:
        """End the call: free its slot, or its place among the parked calls."""
        task = asyncio.current_task()
        self._weights.pop(task, None)
        if mine := self._running.pop(task, None):
            self._pass_slot_on(mine)
        elif parked := self._parked.pop(task, None):
            mine, weight = parked
            self._count_waiting(mine, -weight)

    async def _queue(self, mine: _User, weight: int) -> None:
        """Wait until another call of this user passes its slot on."""
        if not self._may_wait(mine, weight):
            self._refuse_to_wait(mine, weight)
        slot = asyncio.get_running_loop().create_future()
        mine.queue[slot] = None
        self._count_waiting(mine, weight)
        try:
            await slot
        except asyncio.CancelledError:
            if not slot.cancelled():
                # The slot arrived together with the cancellation: without this line it would be lost.
                self._pass_slot_on(mine)
            raise
        finally:
            mine.queue.pop(slot, None)
            self._count_waiting(mine, -weight)

    def _pass_slot_on(self, mine: _User) -> None:
        """Free a slot, and hand the user's free slots to its next queued calls."""
        self._count_running(mine, -1)
        while mine.queue and mine.running < mine.slots:
            slot = next(iter(mine.queue))
            del mine.queue[slot]
            if not slot.done():
                slot.set_result(None)
                self._count_running(mine, 1)
        self._forget_if_idle(mine)

    def _may_wait(self, mine: _User, weight: int) -> bool:
        if self.waiting + weight > self._max_waiting:
            return False
        if mine.service and mine.service.waiting + weight > self._max_waiting_per_service:
            return False
        return mine.waiting + weight <= self._max_waiting_per_user

    def _refuse_to_wait(self, mine: _User, weight: int) -> NoReturn:
        if mine.waiting + weight > self._max_waiting_per_user:
            raise TooManyCalls("user", self._max_calls_per_user + self._max_waiting_per_user)
        if self.waiting + weight > self._max_waiting:
            raise Overloaded
        raise TooManyCalls("service", self._max_calls_per_service + self._max_waiting_per_service)

    def _count_running(self, mine: _User, change: int) -> None:
        mine.running += change
        self.running += change
        if mine.service:
            mine.service.running += change

    def _count_waiting(self, mine: _User, change: int) -> None:
        mine.waiting += change
        self.waiting += change
        if mine.service:
            mine.service.waiting += change
        self._forget_if_idle(mine)

    def _new_user(self, service: str, user: str) -> _User:
        of_service = None
        if service:
            of_service = self._services.get(service)
            if of_service is None:
                of_service = self._services[service] = _Service(service)
        key = service, user
        mine = self._users[key] = _User(key, self._max_calls_per_user, of_service)
        return mine

    def _forget_if_idle(self, mine: _User) -> None:
        if not mine.running and not mine.waiting:
            del self._users[mine.key]
            service = mine.service
            if service and not service.running and not service.waiting:
                del self._services[service.name]


class OpenStreams:
    """The open response streams of one server: at most `max_open`, and so many per service, user and connection."""

    def __init__(self, *, max_open: int, max_per_service: int, max_per_user: int, max_per_connection: int) -> None:
        self._max_open = max_open
        self._max_per_service = max_per_service
        self._max_per_user = max_per_user
        self._max_per_connection = max_per_connection
        self._services: Counter[str] = Counter()
        self._users: Counter[tuple[str, str]] = Counter()
        self._connections: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[Any] | None] = set()
        self._is_draining = False

    @contextmanager
    def slot(self, user: str, connection: str, service: str = "") -> Iterator[None]:
        """Count the current task as a stream of `user` ("" if unknown) on `connection` until the block ends.

        `service` is the one that calls for the user; "" if the user calls itself. Raises TooManyStreams at a limit.
        After `drain`, raises ShuttingDown, also out of a block that is running.
        """
        if self._is_draining:
            raise ShuttingDown
        if self._connections[connection] >= self._max_per_connection:
            raise TooManyStreams("connection", self._max_per_connection)
        if len(self._tasks) >= self._max_open:
            raise TooManyStreams("server", self._max_open)
        if service and self._services[service] >= self._max_per_service:
            raise TooManyStreams("service", self._max_per_service)
        if user and self._users[service, user] >= self._max_per_user:
            raise TooManyStreams("user", self._max_per_user)
        task = asyncio.current_task()
        self._tasks.add(task)
        self._count(user, connection, service, 1)
        try:
            yield
        except asyncio.CancelledError:
            if task and task not in self._tasks and task.uncancel() == 0:
                raise ShuttingDown from None
            # The caller cancelled the call, too: it gets no status.
            raise
        finally:
            self._tasks.discard(task)
            self._count(user, connection, service, -1)

    def drain(self) -> None:
        """End every open stream with ShuttingDown and refuse new ones."""
        self._is_draining = True
        while self._tasks:
            if task := self._tasks.pop():
                task.cancel()

    def _count(self, user: str, connection: str, service: str, change: int) -> None:
        counters: tuple[tuple[Counter[Any], Any], ...] = (
            (self._services, service),
            (self._users, (service, user)),
            (self._connections, connection),
        )
        for counter, key in counters:
            counter[key] += change
            if not counter[key]:
                del counter[key]
