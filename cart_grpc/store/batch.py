"""One transaction for many commands: lock, read what they need, fold them in order, write each row once, claim.

A batch is synchronous and takes any SQLAlchemy connection, so it runs in a thread, under `run_sync`, or inline.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from cart_grpc.carts.calls import NewId
from cart_grpc.commands.command import Command
from cart_grpc.commands.direct import Claim, DirectCommand, ExtendLeases, Pause, Purge, Resume, ReturnClaims
from cart_grpc.commands.unit_of_work import ReadSet, Reply, UnitOfWork
from cart_grpc.names import CartKey, UserKey
from cart_grpc.store.prepared import Rows
from cart_grpc.store.rows import cart_row, item_row, reservation_row, to_cart, to_item, to_reservation
from cart_grpc.store.statements import Statements, mark_row

AnyCommand = Command[object] | DirectCommand
# Who writes, and the number of its batch.
Mark = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a batch came to: an answer or an exception for each command, and hints for who waits.

    `changed` are the carts in which something that a caller could see has changed; `due` says that a reservation
    has become due; `now` is the database's time at which all of it happened.
    """

    now: int
    results: Sequence[object]
    changed: frozenset[CartKey]
    due: bool


def run_batch(
    statements: Statements, connection: Connection, commands: Sequence[AnyCommand], new_id: NewId, mark: Mark
) -> Outcome:
    """Run `commands` in the transaction that `connection` has open; the caller commits.

    A command that is refused, or has a bug, is answered with its exception and changes nothing; the others go on.
    Raises what the database raises.
    """
    folded = [command for command in commands if not isinstance(command, DirectCommand)]
    reads = ReadSet()
    for command in folded:
        command.add_reads(reads)
    now = statements.lock_users(connection, reads.users)
    working = _load(statements, connection, reads) if folded else UnitOfWork()
    folded_answers = iter([_answer(command, working, now, new_id) for command in folded])
    _write(statements, connection, working, now, mark)
    # Claims come last: they wait for nobody, and nobody who waits for their rows holds what they need.
    answers = [
        _work(statements, connection, command, now) if isinstance(command, DirectCommand) else next(folded_answers)
        for command in commands
    ]
    changed = working.changed_carts | {working.reservations[name].cart for name in working.changed_reservations}
    return Outcome(now, answers, frozenset(changed), _has_due(working, now))


def _load(statements: Statements, connection: Connection, reads: ReadSet) -> UnitOfWork:
    working, found = UnitOfWork(), statements.load(connection, reads)
    for slice_, user_id, request_id, fingerprint, reply, _ in found["replies"]:
        stored = Reply(bytes.fromhex(fingerprint), bytes.fromhex(reply))
        working.replies[UserKey(slice_, user_id), request_id] = stored
    for row in found["carts"]:
        cart = to_cart(row)
        working.carts[cart.key] = cart
    for row in found["items"]:
        working.load_item(to_item(row))
    for row in found["reservations"]:
        working.load_reservation(to_reservation(row))
    return working


def _answer(command: Command[object], working: UnitOfWork, now: int, new_id: NewId) -> object:
    try:
        return command.run(working, now, new_id)
    except Exception as refusal:  # noqa: BLE001 - a bug in one command must not fail its neighbours
        return refusal


def _write(statements: Statements, connection: Connection, working: UnitOfWork, now: int, mark: Mark) -> None:
    present, gone = [], []
    for key, item_id in sorted(working.changed_items):
        item = working.items[key].get(item_id)
        if item:
            present.append(item_row(item))
        else:
            gone.append((*key, item_id))
    statements.delete_items(connection, gone)
    replies = [(user, name, working.replies[user, name]) for user, name in sorted(working.new_replies)]
    rows: dict[str, Rows] = {
        "carts": [cart_row(working.carts[key]) for key in sorted(working.changed_carts)],
        "items": present,
        "reservations": [reservation_row(working.reservations[name]) for name in sorted(working.changed_reservations)],
        "replies": [(*user, name, stored.fingerprint, stored.reply, now) for user, name, stored in replies],
        "writers": [mark_row(*mark, now)],
    }
    statements.write(connection, rows)


def _work(statements: Statements, connection: Connection, command: DirectCommand, now: int) -> object:
    match command:
        case Claim(lane, limit, lease):
            return statements.claim(connection, lane, limit, now, lease)
        case ExtendLeases(claims, lease):
            statements.set_lease(connection, _keys(claims), now + lease, now + lease)
        case ReturnClaims(claims):
            statements.set_lease(connection, _keys(claims), None, now)
        case Purge(replies, reservations, carts, limit):
            return statements.purge(connection, now - replies, now - reservations, now - carts, limit)
        case Pause(reason):
            statements.pause(connection, reason, now)
        case Resume():
            statements.resume(connection)
    return None


def _keys(claims: Sequence[Any]) -> list[tuple[int, str, int]]:
    return [(claim.cart.slice, claim.reservation_id, claim.lease_epoch) for claim in claims]


def _has_due(working: UnitOfWork, now: int) -> bool:
    changed = (working.reservations[name] for name in working.changed_reservations)
    return any(row.due_time is not None and row.due_time <= now for row in changed)
