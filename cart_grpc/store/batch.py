"""One transaction for many commands: lock the users, load the rows, fold the commands, write each row once.

Common answers of the Reservation API are recorded before, without loading their rows: see `settle`.

Then the direct commands run.

It is synchronous and takes any SQLAlchemy connection, so it runs in a thread, under `run_sync`, or inline.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection

from cart_grpc.carts.calls import NewId
from cart_grpc.carts.model import CheckoutState, UserTotals
from cart_grpc.commands.apply_transition import release_superseded
from cart_grpc.commands.command import Command
from cart_grpc.commands.direct import (
    Claim,
    DirectCommand,
    EraseRows,
    ExtendLeases,
    Pause,
    Ping,
    Purge,
    Resume,
    ReturnClaims,
    SetAside,
)
from cart_grpc.commands.record import RecordAll
from cart_grpc.commands.unit_of_work import ReadSet, Reply, ReplyKey, UnitOfWork
from cart_grpc.names import CartKey, UserKey
from cart_grpc.protocol.lanes import lane_of
from cart_grpc.protocol.reservation import Reservation
from cart_grpc.protocol.transitions import claim
from cart_grpc.store.change_notifier import NO_ROOM, Room
from cart_grpc.store.prepared import Rows
from cart_grpc.store.queries import WriteQueries
from cart_grpc.store.rows import (
    CHECKOUTS,
    COMMIT_MARKERS,
    REPLIES,
    USERS,
    CommitMarker,
    CommitMarkerRow,
    StoredReply,
    UserRow,
    cart_row,
    checkout_item_row,
    item_row,
    reservation_row,
    to_cart,
    to_checkout_item,
    to_item,
    to_reservation,
)
from cart_grpc.store.settle import settle

AnyCommand = Command[object] | RecordAll | DirectCommand
ENDED_CHECKOUT_STATES: Final = (
    CheckoutState.COMPLETED,
    CheckoutState.FAILED,
    CheckoutState.CANCELLED,
    CheckoutState.EXPIRED,
)


@dataclass(frozen=True, slots=True)
class BatchResult:
    """The result of a batch: an answer or an exception for each command, and the changes to publish.

    `changed`: the carts in which a change is visible to callers, and those of changed checkouts. `claimed`: the
    reservations that became due and were claimed at once for this process. `due`: another reservation has become due.
    `ended_checkouts`: the states of the checkouts that reached one of ENDED_CHECKOUT_STATES. `now`: the database's time
    for the whole batch, in microseconds.
    """

    now: int
    answers: Sequence[object]
    changed: frozenset[CartKey]
    claimed: Sequence[Reservation]
    due: bool
    ended_checkouts: Sequence[CheckoutState] = ()


def run_batch(
    queries: WriteQueries,
    connection: Connection,
    commands: Sequence[AnyCommand],
    new_id: NewId,
    marker: CommitMarker,
    room: Room = NO_ROOM,
) -> BatchResult:
    """Run `commands` in the open transaction of `connection`; the caller commits.

    Claims the reservations that become due for this process, as many as there is `room` for: they are born claimed.
    If a command raises, its exception is its answer. Such a command changes nothing, and the others run as usual.
    Raises the database's errors.
    """
    records = [record for command in commands if isinstance(command, RecordAll) for record in command.records]
    others = [command for command in commands if not isinstance(command, RecordAll | DirectCommand)]
    reads = ReadSet(users={record.claimed.cart.user for record in records})
    for other in others:
        other.add_reads(reads)
    now = queries.lock_users(connection, reads.users)
    settled = settle(queries, connection, records, now)
    unsettled = [record for record, answer in zip(records, settled.answers, strict=True) if answer is None]
    for record in unsettled:
        record.add_reads(reads)
    folded: list[Command[object]] = [*unsettled, *others]
    unit, is_paused = _load(queries, connection, reads) if folded else (UnitOfWork(), False)
    states = {key: checkout.state for key, checkout in unit.checkouts.items()}
    folded_answers = iter([_run_folded(command, unit, now, new_id) for command in folded])
    release_superseded(unit, now)
    recorded = iter([answer or next(folded_answers) for answer in settled.answers])
    claimed, due = _claim_due(unit, NO_ROOM if is_paused else room, now)
    _write(queries, connection, unit, now, marker)
    if folded:
        _delete_empty_users(queries, connection, unit, reads)
    # Direct commands run last. They skip locked rows. Another transaction may wait for the rows that they lock, but
    # from then on this batch waits for no lock, so there is no deadlock.
    answers: list[object] = []
    for command in commands:
        if isinstance(command, RecordAll):
            answers.append([next(recorded) for _ in command.records])
        elif isinstance(command, DirectCommand):
            answers.append(_run_direct(queries, connection, command, now))
        else:
            answers.append(next(folded_answers))
    changed = unit.changed_carts | settled.changed
    changed |= {unit.reservations[reservation_id].cart for reservation_id in unit.changed_reservations}
    changed |= {unit.checkouts[key].cart for key in unit.changed_checkouts}
    ended = [
        state
        for key in unit.changed_checkouts
        if (state := unit.checkouts[key].state) in ENDED_CHECKOUT_STATES and state is not states.get(key)
    ]
    return BatchResult(now, answers, frozenset(changed), claimed, due or settled.due, ended)


def _load(queries: WriteQueries, connection: Connection, reads: ReadSet) -> tuple[UnitOfWork, bool]:
    """Return the rows that the batch reads, and whether claims are paused."""
    unit, (found, is_paused) = UnitOfWork(), queries.load(connection, reads)
    for row in found["users"]:
        user, *totals, erase_time = USERS.to_value(row)
        unit.totals[user] = UserTotals(*totals)
        if erase_time is not None:
            unit.erase_times[user] = erase_time
    for row in found["replies"]:
        stored = REPLIES.to_value(row)
        unit.replies[stored.user, stored.request_id] = Reply(stored.fingerprint, stored.reply)
    for row in found["carts"]:
        cart = to_cart(row)
        unit.carts[cart.key] = cart
    for row in found["items"]:
        unit.load_item(to_item(row))
    for row in found["reservations"]:
        unit.load_reservation(to_reservation(row))
    for row in found.get("checkouts", ()):
        unit.load_checkout(CHECKOUTS.to_value(row))
    for row in found.get("checkout_items", ()):
        unit.load_checkout_item(*to_checkout_item(row))
    return unit, is_paused


def _run_folded(command: Command[object], unit: UnitOfWork, now: int, new_id: NewId) -> object:
    try:
        return command.run(unit, now, new_id)
    except Exception as error:  # noqa: BLE001 - a bug in one command must not fail the others
        return error


def _claim_due(unit: UnitOfWork, room: Room, now: int) -> tuple[Sequence[Reservation], bool]:
    """Claim changed reservations that are due, as many as there is room for, the oldest first.

    They are locked, so no other process claims them. Returns the claimed ones, and whether others are due.
    """
    left, claimed, others_are_due = dict(room.claims), [], False
    for reservation_id in sorted(unit.changed_reservations):
        row = unit.reservations[reservation_id]
        if row.due_time is None or row.due_time > now:
            continue
        lane = lane_of(row)
        if left.get(lane):
            left[lane] -= 1
            row = claim(row, now, now + room.lease_us)
            unit.put_reservation(row)
            claimed.append(row)
        else:
            others_are_due = True
    return claimed, others_are_due


def _write(queries: WriteQueries, connection: Connection, unit: UnitOfWork, now: int, marker: CommitMarker) -> None:
    present, removed = [], []
    for key, item_id in sorted(unit.changed_items):
        item = unit.items[key].get(item_id)
        if item:
            present.append(item_row(item))
        else:
            removed.append((*key, item_id))
    queries.delete_items(connection, removed)
    queries.delete_reservations(connection, sorted(unit.left_keys))
    rows: dict[str, Rows] = {
        "users": [_user_row(unit, user) for user in sorted(unit.changed_users)],
        "carts": [cart_row(unit.carts[key]) for key in sorted(unit.changed_carts)],
        "items": present,
        "reservations": [
            reservation_row(unit.reservations[reservation_id]) for reservation_id in sorted(unit.changed_reservations)
        ],
        "replies": [_reply_row(unit, key, now) for key in sorted(unit.new_replies)],
        "commit_markers": [COMMIT_MARKERS.to_row(CommitMarkerRow(0, marker, now))],
    }
    if unit.changed_checkouts:
        rows["checkouts"] = [CHECKOUTS.to_row(unit.checkouts[key]) for key in sorted(unit.changed_checkouts)]
        rows["checkout_items"] = [
            checkout_item_row(key, unit.checkout_items[key][item_id])
            for key, item_id in sorted(unit.changed_checkout_items)
        ]
    queries.write(connection, rows)


def _user_row(unit: UnitOfWork, user: UserKey) -> Sequence[Any]:
    return USERS.to_row(UserRow(user, *unit.totals[user], unit.erase_times.get(user)))


def _reply_row(unit: UnitOfWork, key: ReplyKey, now: int) -> Sequence[Any]:
    user, request_id = key
    reply = unit.replies[key]
    return REPLIES.to_row(StoredReply(user, request_id, reply.fingerprint, reply.reply, now))


def _delete_empty_users(queries: WriteQueries, connection: Connection, unit: UnitOfWork, reads: ReadSet) -> None:
    """Delete the rows of users for whom nothing is stored: to lock a user inserts one.

    Otherwise a late answer would leave the id of a user who was erased.
    """
    empty = {user for user in reads.users if unit.totals.get(user) == UserTotals() and user not in unit.erase_times}
    if empty:
        # A database that was changed by hand may have rows that the totals do not count.
        empty -= {key.user for key in unit.carts} | {row.cart.user for row in unit.reservations.values()}
        queries.delete_empty_users(connection, sorted(empty))


def _run_direct(queries: WriteQueries, connection: Connection, command: DirectCommand, now: int) -> object:
    match command:
        case Claim():
            return queries.claim(connection, command, now)
        case SetAside(row, reason):
            return queries.set_aside(connection, row, reason)
        case ExtendLeases(claims, lease_us):
            queries.set_lease(connection, claims, now + lease_us, now + lease_us)
        case ReturnClaims(claims):
            queries.set_lease(connection, claims, None, now)
        case Purge():
            return queries.purge(connection, command, now)
        case EraseRows(user, limit):
            return queries.erase(connection, user, limit)
        case Pause(reason):
            queries.pause(connection, reason, now)
        case Resume():
            queries.resume(connection)
        case Ping():
            # The commit marker that every batch writes is enough.
            pass
    return None
