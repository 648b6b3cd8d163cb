"""Runs the statements of the write path: Python values in, Python values out, in a transaction that is open."""

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from operator import attrgetter
from typing import Any, cast

from sqlalchemy import Connection

from cart_grpc.carts.model import CartState
from cart_grpc.commands.direct import Claim, ClaimKey, Purge
from cart_grpc.commands.unit_of_work import ReadSet
from cart_grpc.names import UserKey
from cart_grpc.protocol.reservation import Reservation
from cart_grpc.store import erase_statements, schema, settle_statements, statements
from cart_grpc.store.dialects import Dialect, Key, RowWriter, built_once
from cart_grpc.store.prepared import Prepared, Rows
from cart_grpc.store.rows import (
    COMMIT_MARKERS,
    PAUSES,
    USERS,
    CommitMarker,
    CommitMarkerRow,
    PauseRow,
    UserRow,
    to_reservation,
)
from cart_grpc.store.statements import CART, CHECKOUT, CLAIM, ITEM, OWNED_RESERVATION, REPLY, RESERVATION, SKU, USER

_unchanged, _settled = attrgetter(*settle_statements.UNCHANGED), attrgetter(*settle_statements.SETTLED)
_MARKERS = schema.commit_markers.name
_CHECKOUT_TABLES = {schema.checkouts.name, schema.checkout_items.name}
_SKU_INDEX = schema.items.columns.keys().index("sku")
_CART_STATE = schema.carts.columns.keys().index("state")
_CART_CHECKOUT = schema.carts.columns.keys().index("checkout_id")


class LostUpdate(Exception):
    """A guarded write found a newer row although its lock should have kept other writers out. This is a bug.

    The transaction is rolled back.
    """


@built_once
def write_queries(dialect: Dialect, *, lock_users: bool) -> "WriteQueries":
    """Return the write path's statements for a dialect."""
    return WriteQueries(dialect, lock_users=lock_users)


class WriteQueries:
    """The write path's statements for a dialect. All stores share them: see `write_queries`.

    A statement over many rows has the same text for any number of them, so it is compiled and prepared once.
    """

    def __init__(self, dialect: Dialect, *, lock_users: bool) -> None:
        self._dialect = dialect
        self._lock_users = lock_users
        self._lock = Prepared(statements.lock_users(dialect), statements.lock_users_on_node(dialect))
        self._load = Prepared(statements.load_batch(dialect, has_more=False))
        self._load_more = Prepared(statements.load_batch(dialect, has_more=True))
        self._load_skus = Prepared(statements.load_skus(dialect))
        self._load_checkouts = Prepared(statements.load_checkouts(dialect))
        settle = settle_statements.settle_and_raise if dialect.ctes_can_write else settle_statements.settle
        self._settle = dialect.prepare_rows(settle(dialect), list(settle_statements.SETTLING))
        self._raise_revisions = dialect.prepare_rows(settle_statements.raise_revisions(dialect), CART)
        self._delete_items = Prepared(statements.delete_items(dialect))
        self._delete_reservations = Prepared(statements.delete_reservations(dialect))
        upserts = {table.name: statements.upsert(dialect, table) for table in statements.WRITTEN_WITH_CHECKOUTS}
        self._checkout_writer = dialect.row_writer(upserts)
        self._row_writer = dialect.row_writer({table.name: upserts[table.name] for table in statements.WRITTEN})
        # On PostgreSQL, the statement that writes all tables takes three times as long even if only this one has rows.
        self._marker_writer = dialect.row_writer({_MARKERS: upserts[_MARKERS]})
        self._claims = {lane: statements.claim(dialect, due) for lane, due in schema.LANES.items()}
        self._claims_of_one = {lane: statements.claim_one(dialect, due) for lane, due in schema.LANES.items()}
        self._set_aside = statements.set_aside(dialect)
        self._set_lease = statements.set_lease(dialect)
        self._pause = statements.pause(dialect)
        self._purges = (
            statements.purge_replies(dialect),
            statements.purge_reservations(dialect),
            statements.purge_carts(dialect),
            statements.purge_checkouts(dialect),
        )
        self._delete_checkout_items = statements.delete_checkout_items(dialect)
        self._subtract_stored_bytes = statements.subtract_stored_bytes(dialect)
        self._purge_users = statements.purge_users(dialect)
        self._lock_erased = erase_statements.lock_user()
        self._erase = erase_statements.delete_rows(dialect)
        self._delete_erased = erase_statements.delete_user()

    def lock_users(self, connection: Connection, users: Collection[UserKey]) -> int:
        """Lock the users' rows and return the database's time in microseconds, read once they are locked.

        All replicas lock users in the same order, or two batches could deadlock. On SQLite, BEGIN IMMEDIATE has locked
        the whole file.
        """
        if not users or not self._lock_users:
            return self.read_now(connection)
        rows = self._dialect.bind_rows(schema.users, [USERS.to_row(UserRow(user)) for user in sorted(users)])
        found = self._lock.fetch(connection, cast("Mapping[str, Any]", rows))
        return int(found[0][0]) if found else self.read_now(connection)

    def read_now(self, connection: Connection) -> int:
        """Return the database's time in microseconds."""
        return self._dialect.read_now(connection)

    def load(self, connection: Connection, reads: ReadSet) -> tuple[Mapping[str, Rows], bool]:
        """Return the rows that a batch reads, by table, and whether claims are paused.

        An item comes with its reservation, a sku with its reconciling reservations. Reservations are locked: a claim
        does not lock the user, and this batch must not overwrite its changes.
        """
        keys = {
            "users": (USER, reads.users),
            "replies": (REPLY, [(*user, request_id) for user, request_id in reads.replies]),
            "carts": (CART, reads.carts),
            "whole_carts": (CART, reads.whole_carts),
            "items": (ITEM, [(*cart, item_id) for cart, item_id in reads.items]),
            "reservations": (
                OWNED_RESERVATION,
                [(cart.slice, cart.user_id, reservation_id) for cart, reservation_id in reads.reservations],
            ),
            "skus": (SKU, [(*cart, sku) for cart, sku in reads.skus]),
        }
        parameters: dict[str, Any] = {}
        for name, (columns, wanted) in keys.items():
            parameters.update(self._dialect.bind_keys(columns, wanted, name))
        load = self._load_more if reads.whole_carts or reads.reservations else self._load
        ((*texts, is_paused),) = load.fetch(connection, parameters)
        found = {table.name: json.loads(text) for table, text in zip(statements.LOADED, texts, strict=True)}
        # Commands that name an item without its sku need that sku's reservations, too.
        skus = {(*item[:3], item[_SKU_INDEX]) for item in found["items"]} - {(*cart, sku) for cart, sku in reads.skus}
        if skus:
            ((text,),) = self._load_skus.fetch(connection, self._dialect.bind_keys(SKU, skus))
            found["reservations"] += json.loads(text)
        self._add_checkouts(connection, found, reads)
        return found, bool(is_paused)

    def _add_checkouts(self, connection: Connection, found: dict[str, Rows], reads: ReadSet) -> None:
        """Add to `found` the checkouts of `reads`, and those of the found carts that are CHECKING_OUT."""
        frozen = {
            (row[0], row[1], row[_CART_CHECKOUT])
            for row in found["carts"]
            if row[_CART_STATE] == CartState.CHECKING_OUT
        }
        if not reads.checkouts and not frozen:
            return
        parameters = {
            **self._dialect.bind_keys(CHECKOUT, frozen.union(reads.checkouts), "checkouts"),
            **self._dialect.bind_keys(CHECKOUT, reads.checkouts, "whole"),
        }
        (texts,) = self._load_checkouts.fetch(connection, parameters)
        for table, text in zip(statements.LOADED_WITH_CHECKOUTS, texts, strict=True):
            found[table.name] = [*found.get(table.name, ()), *json.loads(text)]

    def settle(self, connection: Connection, changes: Sequence[tuple[Reservation, Reservation, bool]]) -> set[str]:
        """Write those reservations (as claimed, after, is_visible) whose rows have not changed since. Return their ids.

        Also raise the revisions of the carts in which a change is visible. Their users are locked.
        """
        rows = [
            (before.cart.slice, before.reservation_id, *_unchanged(before), *_settled(after), is_visible)
            for before, after, is_visible in changes
        ]
        settled = {reservation_id for (reservation_id,) in self._settle.fetch(connection, rows)}
        if not self._dialect.ctes_can_write:
            visible = (after for _, after, is_visible in changes if is_visible)
            carts = {after.cart for after in visible if after.reservation_id in settled}
            self._raise_revisions.fetch(connection, sorted(carts))
        return settled

    def write(self, connection: Connection, rows: Mapping[str, Rows]) -> None:
        """Write whole rows, by table. Raises LostUpdate if a column that only rises would have fallen."""
        written = self._find_writer({name for name, wanted in rows.items() if wanted}).write(connection, rows)
        for name, wanted in rows.items():
            if written.get(name, 0) != len(wanted):
                raise LostUpdate(f"{name}: {written.get(name)} of {len(wanted)} rows were written")

    def _find_writer(self, tables: AbstractSet[str]) -> RowWriter:
        if tables <= {_MARKERS}:
            return self._marker_writer
        return self._row_writer if tables.isdisjoint(_CHECKOUT_TABLES) else self._checkout_writer

    def delete_items(self, connection: Connection, keys: Sequence[Key]) -> None:
        """Delete items by key (slice, user_id, cart_id, item_id)."""
        if keys:
            self._dialect.force_custom_plan(connection)
            self._delete_items.fetch(connection, self._dialect.bind_keys(ITEM, keys))

    def delete_reservations(self, connection: Connection, keys: Sequence[Key]) -> None:
        """Delete reservations by key (slice, reservation_id)."""
        if keys:
            self._dialect.force_custom_plan(connection)
            self._delete_reservations.fetch(connection, self._dialect.bind_keys(RESERVATION, keys))

    def claim(self, connection: Connection, claim: Claim, now: int) -> list[Reservation]:
        """Claim due reservations. Raises their epoch and attempt_count."""
        self._dialect.force_custom_plan(connection)
        parameters = {"now": now, "until": now + claim.lease_us, "most": claim.limit}
        if claim.only is None:
            found = connection.execute(self._claims[claim.lane], parameters)
        else:
            key = self._dialect.bind_keys(CLAIM, [claim.only])
            found = connection.execute(self._claims_of_one[claim.lane], {**parameters, **key})
        return [to_reservation(row) for row in found.all()]

    def set_aside(self, connection: Connection, row: ClaimKey, reason: str) -> bool:
        """Set a row aside if it still has this epoch and is due or claimed. Returns whether it was."""
        parameters = {**self._dialect.bind_keys(CLAIM, [row]), "why": reason}
        return bool(connection.execute(self._set_aside, parameters).all())

    def set_lease(
        self, connection: Connection, claims: Sequence[Reservation], lease_expire_time: int | None, due_time: int
    ) -> None:
        """Extend claims, or return them with a `lease_expire_time` of None, if they are still ours.

        Skips rows that another transaction has locked: waiting for them could deadlock, and a lease only saves work.
        """
        if claims:
            self._dialect.force_custom_plan(connection)
            keys = [(claim.cart.slice, claim.reservation_id, claim.lease_epoch) for claim in claims]
            parameters = {**self._dialect.bind_keys(CLAIM, keys), "until": lease_expire_time, "due": due_time}
            connection.execute(self._set_lease, parameters)

    def purge(self, connection: Connection, purge: Purge, now: int) -> int:
        """Delete up to `limit` rows each of the replies, finished reservations, carts and checkouts that are due.

        Also updates the totals of their users, and deletes the row of a user for whom nothing is stored any more.
        Returns how many rows it deleted, not counting users and items.
        """
        self._dialect.force_custom_plan(connection)
        deleted, rows = 0, list[Any]()
        kept = (purge.replies_us, purge.reservations_us, purge.carts_us, purge.checkouts_us)
        for statement, kept_us in zip(self._purges, kept, strict=True):
            rows = list(connection.execute(statement, {"before": now - kept_us, "most": purge.limit}).all())
            deleted += len(rows)
            self._subtract(connection, [row[:3] for row in rows])
        # The checkouts are purged last. Their items count no bytes of their own.
        if rows:
            keys = [(slice_, user_id, checkout_id) for slice_, user_id, _, checkout_id in rows]
            connection.execute(self._delete_checkout_items, self._dialect.bind_keys(CHECKOUT, keys))
        self._dialect.give_back_space(connection)
        return deleted

    def _subtract(self, connection: Connection, purged: Sequence[Any]) -> None:
        sizes: Counter[UserKey] = Counter()
        for slice_, user_id, size in purged:
            sizes[UserKey(slice_, user_id)] += size
        if sizes:
            rows = [USERS.to_row(UserRow(*each)) for each in sorted(sizes.items())]
            connection.execute(self._subtract_stored_bytes, self._dialect.bind_rows(schema.users, rows))
            connection.execute(self._purge_users, self._dialect.bind_keys(USER, sorted(sizes)))

    def delete_empty_users(self, connection: Connection, users: Sequence[UserKey]) -> None:
        """Delete those of the locked `users` for whom nothing is stored."""
        if users:
            self._dialect.force_custom_plan(connection)
            connection.execute(self._purge_users, self._dialect.bind_keys(USER, users))

    def erase(self, connection: Connection, user: UserKey, limit: int) -> int:
        """Delete up to `limit` rows of each table of a user who is being erased, and the user's row if it is the last.

        Returns how many rows it deleted; 0 if another transaction has locked the user.
        """
        self._dialect.force_custom_plan(connection)
        key = {"slice": user.slice, "user": user.user_id}
        if not connection.execute(self._lock_erased, key).all():
            return 0
        deleted = sum(connection.execute(each, {**key, "most": limit}).rowcount for each in self._erase)
        return deleted or connection.execute(self._delete_erased, key).rowcount

    def pause(self, connection: Connection, reason: str, now: int) -> None:
        """Stop all claims, for `reason`. If they are stopped already, this replaces only the reason."""
        row = PAUSES.to_row(PauseRow(0, schema.RESERVATIONS_PAUSE, reason, now))
        connection.execute(self._pause, self._dialect.bind_rows(schema.pauses, [row]))

    def resume(self, connection: Connection) -> None:
        """Allow claims again."""
        connection.execute(statements.RESUME)

    def write_commit_marker(self, connection: Connection, marker: CommitMarker, now: int) -> None:
        """Write a commit marker alone. A batch writes its marker together with its other rows."""
        self.write(connection, {"commit_markers": [COMMIT_MARKERS.to_row(CommitMarkerRow(0, marker, now))]})

    def find_batch_number(self, connection: Connection, writer_id: str) -> int | None:
        """Return the number of the last batch that a writer committed. Waits for its transaction that still runs."""
        number: int | None = connection.execute(
            statements.FIND_BATCH_NUMBER, {"writer": writer_id}
        ).scalar_one_or_none()
        return number

    def delete_commit_markers(self, connection: Connection, before: int) -> None:
        """Delete the markers of writers that have not committed since `before`."""
        connection.execute(statements.DELETE_COMMIT_MARKERS, {"before": before})
