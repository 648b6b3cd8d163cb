"""Hints between processes on one PostgreSQL: "these carts have changed", with NOTIFY and LISTEN.

A hint may be lost, so nothing depends on one. It is sent after the commit, in a transaction of its own: transactions
that notify commit one after the other, and callers must not wait for that. The changes of 50 ms share a statement.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any, Final

import asyncpg
from sqlalchemy import Connection

from cart_grpc.logs import events
from cart_grpc.names import CartKey, parse_cart_key
from cart_grpc.store.change_notifier import OnChange
from cart_grpc.store.failure_log import FailureLog
from cart_grpc.store.postgresql_session import SETTINGS, Sessions
from cart_grpc.store.prepared import fetch

Query = Callable[[Callable[[Connection], Any]], Awaitable[Any]]
CHANNEL: Final = "cart_grpc"
# At most 20 statements a second, however many carts change. With 50, AddItem cost up to a tenth more CPU.
PAUSE_SECONDS: Final = 0.05
# PostgreSQL's limit is 8,000 bytes.
MAX_PAYLOAD: Final = 7_900
# While the database grants no session, or ends each new one.
FIRST_RETRY_SECONDS: Final = 0.5
MAX_RETRY_SECONDS: Final = 30.0
# Nobody needs a hint after a crash, so its commit does not wait for the disk.
_NOTIFY: Final = """
    SELECT set_config('synchronous_commit', 'off', true), count(pg_notify($1, hint))
    FROM unnest($2::text[]) AS hints(hint)
"""
_RENAME: Final = "SELECT set_config('application_name', current_setting('application_name') || ' hints', false)"
_SEPARATOR = " "


def encode_hints(sender: str, changed: Iterable[CartKey]) -> Iterator[str]:
    """The payloads that name `changed`: the sender, then keys."""
    parts, size = [sender], len(sender)
    for slice_, user_id, cart_id in changed:
        key = f"{slice_}/{user_id}/{cart_id}"
        if size + 1 + len(key) > MAX_PAYLOAD:
            yield _SEPARATOR.join(parts)
            parts, size = [sender], len(sender)
        parts.append(key)
        size += 1 + len(key)
    yield _SEPARATOR.join(parts)


def decode_hint(payload: str) -> tuple[str, list[CartKey]]:
    """The sender and the carts in a payload. Raises ValueError: anybody may send on the channel."""
    sender, *keys = payload.split(_SEPARATOR)
    return sender, [parse_cart_key(key) for key in keys]


class PostgresqlHints:
    """Sends this process's hints with `query`, and receives those of other processes on a session of its own."""

    def __init__(self, sessions: Sessions, query: Query) -> None:
        self._sender = secrets.token_hex(4)
        self._query = query
        self._changed: set[CartKey] = set()
        self._sending: asyncio.Task[None] | None = None
        self._listener = _Listener(sessions, self._sender)
        self._failures = FailureLog(
            events.HINTS_FAILING,
            events.HINTS_RECOVERED,
            "hints to other processes fail",
            "hints to other processes work again",
        )

    def send(self, changed: Iterable[CartKey]) -> None:
        """Tell other processes soon that these carts have changed. Never raises or waits."""
        self._changed.update(changed)
        if self._changed and self._sending is None:
            self._sending = asyncio.create_task(self._send(), name="send-hints")

    def listen(self, on_change: OnChange, on_gap: Callable[[], None]) -> None:
        """Call `on_change` for the hints of other processes from now on, and `on_gap` when hints may have been lost.

        A second call with the same `on_change` changes nothing.
        """
        self._listener.add(on_change, on_gap)

    def replace(self) -> None:
        """Listen on a new session: another server may be the primary now."""
        self._listener.replace()

    @property
    def is_open(self) -> bool:
        """Whether the session that listens is open."""
        return self._listener.is_open

    async def give_up(self) -> None:
        """End the session that listens, because a pool needs its place. Try again in half a minute."""
        await self._listener.give_up()

    async def close(self) -> None:
        """Stop sending and listening."""
        if self._sending:
            self._sending.cancel()
            await asyncio.gather(self._sending, return_exceptions=True)
        await self._listener.close()

    async def _send(self) -> None:
        try:
            while self._changed:
                changed, self._changed = self._changed, set()
                await self._notify(list(encode_hints(self._sender, changed)))
                await asyncio.sleep(PAUSE_SECONDS)
        finally:
            self._sending = None

    async def _notify(self, payloads: list[str]) -> None:
        try:
            with self._failures.translated():
                await self._query(lambda connection: fetch(connection, _NOTIFY, [CHANNEL, payloads]))
        except Exception as error:  # noqa: BLE001 - a hint may be lost, and the next one must be sent
            self._failures.note_failure(error)


class _Listener:
    """A session that listens, once it is started. It is opened again when it ends."""

    def __init__(self, sessions: Sessions, sender: str) -> None:
        self._sessions = sessions
        self._sender = sender
        self._gaps: dict[OnChange, Callable[[], None]] = {}
        self._task: asyncio.Task[None] | None = None
        self._connection: asyncpg.Connection | None = None
        self._ended = asyncio.Event()
        self._pause = FIRST_RETRY_SECONDS
        self._failures = FailureLog(
            events.HINTS_FAILING,
            events.HINTS_RECOVERED,
            "no hints from other processes",
            "hints from other processes arrive again",
        )

    def add(self, on_change: OnChange, on_gap: Callable[[], None]) -> None:
        self._gaps.setdefault(on_change, on_gap)
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="listen-for-hints")

    def replace(self) -> None:
        self._ended.set()

    @property
    def is_open(self) -> bool:
        return self._connection is not None

    async def give_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection:
            self._pause = MAX_RETRY_SECONDS
            await _end(connection)

    async def close(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            try:
                await self._listen()
            except Exception as error:  # noqa: BLE001 - whatever fails, hints must come back
                self._failures.note_failure(error)
                self._pause = min(2 * self._pause, MAX_RETRY_SECONDS)
            await asyncio.sleep(self._pause)

    async def _listen(self) -> None:
        """Listen until the session ends."""

        def receive(_connection: object, _pid: int, _channel: str, payload: object) -> None:
            try:
                sender, changed = decode_hint(str(payload))
            except ValueError:
                # Somebody else uses the channel.
                return
            if sender != self._sender:
                for on_change in self._gaps:
                    on_change(changed)

        self._ended.clear()
        connection = await self._sessions.open(SETTINGS)
        try:
            self._connection = connection
            connection.add_termination_listener(lambda _: self._ended.set())
            await connection.execute(_RENAME)
            await connection.add_listener(CHANNEL, receive)
            self._pause = FIRST_RETRY_SECONDS
            self._failures.note_success()
            # Changes before this moment gave no hint.
            for on_gap in self._gaps.values():
                on_gap()
            await self._ended.wait()
        finally:
            self._connection = None
            await _end(connection)


async def _end(connection: asyncpg.Connection) -> None:
    """Close the session, or cut it if the database does not answer."""
    try:
        await connection.close(timeout=1)
    except Exception:  # noqa: BLE001 - it is gone, or it is cut
        connection.terminate()
