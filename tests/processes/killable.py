"""`cart-grpc` that kills itself with SIGKILL when it reaches the point named in the file `kill-at` of its folder.

Points are named after the commands in a batch and the progress of its transaction (`claim begun`, `claim written`,
`claim committed`), two steps that a batch may have (`birth`: reservations are born claimed, and are handed over after
the commit; `settlement`: answers are recorded without reading), the calls of the Reservation API (`call unsent`,
`batch call answered`; `commit`: a call, alone or in a batch, that sells) and the caller's reply (`reply unsent`).
`merge in mid call` is a merge that moves a reservation while a call for it is on its way. This module patches them into
the product, which has no code for them.
"""

import asyncio
import functools
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from cart_grpc.carts.calls import MergeCarts
from cart_grpc.carts.checkout_calls import BeginCheckout, CancelCheckout, CompleteCheckout
from cart_grpc.cli import program as cli
from cart_grpc.commands.checkout import EvaluateCheckout
from cart_grpc.commands.direct import Claim, ExtendLeases, Purge, ReturnClaims
from cart_grpc.commands.expire import Expire
from cart_grpc.commands.mutation import Mutation
from cart_grpc.commands.record import RecordAll
from cart_grpc.commands.unit_of_work import UnitOfWork
from cart_grpc.protocol.reservation import Disposition, Intent
from cart_grpc.reservation_api.grpc_api import GrpcReservationApi
from cart_grpc.store import batch as store_batch
from cart_grpc.store.postgresql import PostgresqlEngine
from cart_grpc.store.queries import WriteQueries
from cart_grpc.store.shard_queue import Handover
from cart_grpc.store.sqlite import SqliteEngine
from cart_grpc.store.store import Store

# The commands and the calls after which the points are named. Other commands have their class's name, and no points.
BATCHES: dict[type, str] = {
    Mutation: "mutation",
    Claim: "claim",
    RecordAll: "record",
    ExtendLeases: "extension",
    Purge: "purge",
    Expire: "expiry",
    ReturnClaims: "return",
    EvaluateCheckout: "evaluation",
    MergeCarts: "merge",
    BeginCheckout: "begin",
    CompleteCheckout: "complete",
    CancelCheckout: "cancel",
}
POINTS = (
    *(f"{batch} begun" for batch in ("mutation", "claim", "record")),
    *(f"{batch} written" for batch in ("mutation", "claim", "record", "extension", "purge", "expiry", "return")),
    *(f"{batch} committed" for batch in BATCHES.values()),
    "merge in mid call committed",
    "commit unsent",
    "commit answered",
    "call unsent",
    "call answered",
    *(f"{step} {moment}" for step in ("birth", "settlement") for moment in ("written", "committed")),
    "batch call unsent",
    "batch call sent",
    "batch call answered",
    "batch call half answered",
    "reply unsent",
)
_KILL_AT = Path("kill-at")
_batches: ContextVar[list[str]] = ContextVar("batches")
# How many calls are on their way, by reservation id.
_calls: Counter[str] = Counter()


def arm(folder: Path, point: str) -> None:
    """Make the program in `folder` die when it next reaches `point`."""
    assert point in POINTS
    # Renamed into place, because the program may read the file at any time.
    (folder / "kill-at.new").write_text(point)
    (folder / "kill-at.new").rename(folder / _KILL_AT)


def _reach(point: str) -> None:
    try:
        armed = _KILL_AT.read_text()
    except FileNotFoundError:
        return
    if armed == point:
        _KILL_AT.unlink()
        os.write(2, f"killed at {point}\n".encode())
        os.kill(os.getpid(), signal.SIGKILL)


def _around_take(take: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(take)
    def around(self: Handover) -> Any:
        taken = take(self)
        batches = _batches.get()
        batches.extend(sorted({_name(queued.command) for queued in taken}))
        _reach_batches(batches, "begun")
        return taken

    return around


def _name(command: object) -> str:
    kinds = type(getattr(command, "call", None)), type(command)
    return next((BATCHES[kind] for kind in kinds if kind in BATCHES), kinds[1].__name__)


def _reach_batches(batches: Sequence[str], moment: str) -> None:
    for batch in batches:
        _reach(f"{batch} {moment}")


def _around_transaction(transact: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(transact)
    async def around(self: object, work: Callable[[Connection], Any]) -> Any:
        # The batch is taken inside the transaction, so its commands are not known yet.
        batches: list[str] = []

        def watched(connection: Connection) -> Any:
            # Set here: SQLite's writer runs in another thread, which has its own context variables.
            _batches.set(batches)
            result = work(connection)
            _reach_batches(batches, "written")
            return result

        result = await transact(self, watched)
        _reach_batches(batches, "committed")
        return result

    return around


def _before_reply(mutate: Callable[..., Awaitable[bytes]]) -> Callable[..., Awaitable[bytes]]:
    @functools.wraps(mutate)
    async def around(self: object, mutation: object) -> bytes:
        reply = await mutate(self, mutation)
        _reach("reply unsent")
        return reply

    return around


def _around_merge(run: Callable[..., bytes]) -> Callable[..., bytes]:
    """Add a step to the batch under way if a mutation moves a reservation while a call for it is on its way."""

    @functools.wraps(run)
    def around(self: Mutation, unit: UnitOfWork, *arguments: Any) -> bytes:
        carts = {reservation_id: row.cart for reservation_id, row in unit.reservations.items()}
        reply = run(self, unit, *arguments)
        if any(unit.reservations[name].cart != cart and _calls[name] for name, cart in carts.items()):
            _batches.get().append("merge in mid call")
        return reply

    return around


@contextmanager
def _calling(intents: Sequence[Intent]) -> Iterator[None]:
    """Count the calls during the block."""
    names = [intent.reservation_id for intent in intents]
    _calls.update(names)
    try:
        yield
    finally:
        _calls.subtract(names)


def _reach_commit(intents: Sequence[Intent], moment: str) -> None:
    if any(intent.disposition is Disposition.COMMIT for intent in intents):
        _reach(f"commit {moment}")


def _around_call(apply: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(apply)
    async def around(self: object, intent: Intent, **named: Any) -> Any:
        _reach("call unsent")
        _reach_commit([intent], "unsent")
        with _calling([intent]):
            answer = await apply(self, intent, **named)
        _reach("call answered")
        _reach_commit([intent], "answered")
        return answer

    return around


def _as_step(step: str, function: Callable[..., Any], has_effect: Callable[[Any], bool]) -> Callable[..., Any]:
    """Add `step` to the batch under way if the result of `function` shows that it had an effect."""

    @functools.wraps(function)
    def around(*arguments: Any) -> Any:
        result = function(*arguments)
        if has_effect(result):
            _batches.get().append(step)
        return result

    return around


def _around_batch(apply_batch: Callable[..., AsyncGenerator[Any, None]]) -> Callable[..., AsyncGenerator[Any, None]]:
    @functools.wraps(apply_batch)
    async def around(self: Any, intents: Sequence[Intent], **named: Any) -> AsyncGenerator[Any, None]:
        _reach("batch call unsent")
        _reach_commit(intents, "unsent")
        # The simulator's latency is longer.
        sent = asyncio.get_running_loop().call_later(0.01, _reach, "batch call sent")
        answered = 0
        with _calling(intents):
            async with aclosing(apply_batch(self, intents, **named)) as arriving:
                async for applied in arriving:
                    sent.cancel()
                    _reach("batch call answered")
                    _reach_commit([intents[position] for position, _ in applied], "answered")
                    yield applied
                    answered += len(applied)
                    if answered < len(intents):
                        _reach("batch call half answered")

    return around


def main() -> int:
    """Run the command line with the points patched in."""
    seams: Any
    for seams in (SqliteEngine, PostgresqlEngine):
        seams.transact = _around_transaction(seams.transact)
    seams = Handover
    seams.take = _around_take(seams.take)
    seams = store_batch
    seams._claim_due = _as_step("birth", seams._claim_due, lambda result: bool(result[0]))
    seams = WriteQueries
    seams.settle = _as_step("settlement", seams.settle, bool)
    seams = GrpcReservationApi
    seams.apply = _around_call(seams.apply)
    seams.apply_batch = _around_batch(seams.apply_batch)
    seams = Store
    seams.mutate = _before_reply(seams.mutate)
    seams = Mutation
    seams.run = _around_merge(seams.run)
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
