"""One watcher's view of a cart, and the states that all watchers of a cart share."""

import asyncio
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from cart_grpc.store.read.cart_json import CartJson

T = TypeVar("T")
# Makes a form of a state, such as its values or its encoded message.
Form = Callable[[CartJson], T]


class SharedState:
    """A state of a cart; `found` is None if there is no cart. Each form of it is made once, for all watchers.

    Only watchers that have not taken it yet refer to it. So an idle watcher keeps no cart in memory.
    """

    __slots__ = ("_forms", "found")

    def __init__(self, found: CartJson | None) -> None:
        self.found = found
        self._forms: dict[Form[Any], Any] = {}

    def take(self, form: Form[T]) -> T | None:
        """Return the state in this form, or None if there is no cart. Raises what `form` raises."""
        if self.found is None:
            return None
        if form not in self._forms:
            self._forms[form] = form(self.found)
        made: T = self._forms[form]
        return made


class Watch(Generic[T]):
    """One watcher's view of a cart: an asynchronous iterator of its states, None if there is no such cart.

    The first state was read after the watcher arrived. Newer states follow. At most one state is pending, so a slow
    watcher misses states, but never the last one. If a wait for the next state is cancelled, no state is lost. The
    iterator ends when the process begins to stop.

    Raises Overloaded or DatabaseUnavailable if the first state cannot be read.
    """

    # Small, because thousands of them are idle at a time.
    __slots__ = ("_error", "_form", "_has_begun", "_is_ended", "_pending", "_waiter")

    def __init__(self, form: Form[T]) -> None:
        self._form = form
        self._pending: SharedState | None = None
        self._error: Exception | None = None
        self._has_begun = False
        self._is_ended = False
        self._waiter: asyncio.Future[None] | None = None

    def __aiter__(self) -> "Watch[T]":
        return self

    async def __anext__(self) -> T | None:
        while self._pending is None:
            if self._error:
                raise self._error
            # The first state comes also during a stop: a call that begins to wait then needs it for its reply.
            if self._is_ended and self._has_begun:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        state, self._pending = self._pending, None
        return state.take(self._form)

    @property
    def has_pending(self) -> bool:
        """Whether there is a state that the watcher has not taken yet."""
        return self._pending is not None

    def offer(self, state: SharedState) -> None:
        """Replace the pending state."""
        self._pending = state
        self._has_begun = True
        self._wake()

    def fail(self, error: Exception) -> None:
        """Raise `error` from the iterator, after the pending state if there is one."""
        self._error = error
        self._wake()

    def end(self) -> None:
        """End the iterator, after the pending state if there is one."""
        self._is_ended = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)
