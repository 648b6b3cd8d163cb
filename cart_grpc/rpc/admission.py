"""Who may be at work, who waits, and who is refused: a server that begins more than it can do ends nothing in time.

- So many calls are at work at a time. One more is refused before its request is even received, which takes 0.8 of what
  an empty call does: gRPC's own part cannot be spared. So this bound is high, and HTTP/2's on the streams of one
  connection is what keeps most of a flood out: to refuse all of it would leave no time to work.
- So many of one user's are at work at a time; further ones wait for their turn, which costs nothing: whoever floods
  delays himself.
- Who waits, be it for his turn or (max_wait) for a reservation, is not at work. There is only so much room for waiting,
  too: for want of it, who waits for his turn is refused, and who waits for a reservation is answered as it is.
"""

import asyncio
from typing import Any

from cart_grpc.carts.refusals import Overloaded, TooManyCalls


class _User:
    """How many calls of a user are at work, and how many wait: those in `turns` for one of the others to end."""

    __slots__ = ("name", "turns", "waiting", "working")

    def __init__(self, name: str) -> None:
        self.name = name
        self.working = 0
        self.waiting = 0
        self.turns: dict[asyncio.Future[None], None] = {}


class Admission:
    """The calls of a server: at most `calls` at work and `waiting` that wait, and so many of each of one user.

    A call is a task: `enter`, `rest` and `leave` are about the one that is running.
    """

    def __init__(self, *, calls: int, calls_per_user: int, waiting: int, waiting_per_user: int) -> None:
        self._calls = calls
        self._calls_per_user = calls_per_user
        self._waiting_most = waiting
        self._waiting_per_user = waiting_per_user
        self._users: dict[str, _User] = {}
        self._working: dict[asyncio.Task[Any] | None, _User] = {}
        self._resting: dict[asyncio.Task[Any] | None, _User] = {}
        self.working = 0
        self.waiting = 0

    @property
    def is_full(self) -> bool:
        """Whether one more call would be refused, whoever's it is."""
        return self.working >= self._calls

    async def enter(self, user: str) -> None:
        """Go to work, when it is this user's turn. Raises Overloaded or TooManyCalls."""
        if self.is_full:
            raise Overloaded
        mine = self._users.get(user)
        if mine is None:
            mine = self._users[user] = _User(user)
        if mine.working < self._calls_per_user:
            mine.working += 1
            self.working += 1
        else:
            await self._turn(mine)
        self._working[asyncio.current_task()] = mine

    def rest(self) -> bool:
        """Stop working, for the call is about to wait. Returns whether there is room to: if not, it stays at work."""
        task = asyncio.current_task()
        mine = self._working.get(task)
        if mine is None:
            return True
        if not self._has_room(mine):
            return False
        self._wait(mine, 1)
        self._resting[task] = mine
        del self._working[task]
        self._pass_on(mine)
        return True

    def leave(self) -> None:
        """The call has ended, or was never let in."""
        task = asyncio.current_task()
        if mine := self._working.pop(task, None):
            self._pass_on(mine)
        elif mine := self._resting.pop(task, None):
            self._wait(mine, -1)

    async def _turn(self, mine: _User) -> None:
        """Wait for a place that another call of this user passes on."""
        if not self._has_room(mine):
            if mine.waiting < self._waiting_per_user:
                raise Overloaded
            raise TooManyCalls(self._calls_per_user + self._waiting_per_user)
        turn = asyncio.get_running_loop().create_future()
        mine.turns[turn] = None
        self._wait(mine, 1)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                # Its turn has come, and nobody else knows of that place.
                self._pass_on(mine)
            raise
        finally:
            mine.turns.pop(turn, None)
            self._wait(mine, -1)

    def _pass_on(self, mine: _User) -> None:
        """Give a place at work to the user's next call, or back."""
        while mine.turns:
            turn = next(iter(mine.turns))
            del mine.turns[turn]
            if not turn.done():
                turn.set_result(None)
                return
        mine.working -= 1
        self.working -= 1
        self._forget(mine)

    def _has_room(self, mine: _User) -> bool:
        return self.waiting < self._waiting_most and mine.waiting < self._waiting_per_user

    def _wait(self, mine: _User, more: int) -> None:
        mine.waiting += more
        self.waiting += more
        self._forget(mine)

    def _forget(self, mine: _User) -> None:
        if not mine.working and not mine.waiting:
            del self._users[mine.name]
