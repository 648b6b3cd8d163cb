"""Commands and outcomes for the tests of the store, and functions that read the result."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from sqlalchemy import Connection, func, select, update

from cart_grpc.carts.calls import AddItems, Call, Change, ClearCart, Limits, NewId, RemoveItem, addition
from cart_grpc.commands.direct import Claim
from cart_grpc.commands.mutation import Mutation
from cart_grpc.commands.record import RecordOutcome
from cart_grpc.commands.unit_of_work import ReadSet, UnitOfWork
from cart_grpc.names import CartKey, cart_key, item_id_of, user_key
from cart_grpc.protocol.lanes import HOLD_LANE, RELEASE_LANE, Lane
from cart_grpc.protocol.reservation import Decision, Disposition, NoAnswer, Observed, Reservation
from cart_grpc.store import schema
from cart_grpc.store.engine import Engine
from cart_grpc.store.pool_usage import PoolUsage
from cart_grpc.store.postgresql import PostgresqlEngine
from cart_grpc.store.read.operator_reads import ReservationSnapshot, UnreadableReservation
from cart_grpc.store.read.reads import Reads
from cart_grpc.store.read.snapshot import Snapshot
from cart_grpc.store.shards import Shard, shard_index
from cart_grpc.store.sqlite import SqliteEngine
from cart_grpc.store.store import Store

T = TypeVar("T")
SECOND = 1_000_000
HOUR = 3600 * SECOND
LEASE = 15 * SECOND
KEY = cart_key(user_key("alice"), "default")
SKU = "espresso-beans"
LIMITS = Limits()


def encode(change: Change, now: int) -> bytes:
    """A reply with the quantities by sku, the cart's revision and the time, so that two effects differ."""
    quantities = {line.item.sku: line.item.quantity for line in change.lines}
    return json.dumps([quantities, change.cart.revision, now]).encode()


def decode(reply: bytes) -> Mapping[str, int]:
    """The quantities by sku in a reply."""
    quantities: Mapping[str, int] = json.loads(reply)[0]
    return quantities


def mutation(call: Call) -> Mutation:
    """A mutation whose reply is the bytes of `encode`."""
    return Mutation(call, encode, LIMITS)


def add(
    sku: str = SKU, quantity: int = 1, key: CartKey = KEY, *, request_id: str = "", body: bytes = b"", etag: str = ""
) -> Mutation:
    """AddItem."""
    additions = (addition(sku, {}, quantity, None, None),)
    return mutation(AddItems(key, additions, etag=etag, request_id=request_id, fingerprint=body))


def remove(sku: str = SKU, key: CartKey = KEY) -> Mutation:
    """RemoveItem."""
    return mutation(RemoveItem(key, item_id_of(sku, {})))


def clear(key: CartKey = KEY) -> Mutation:
    """ClearCart."""
    return mutation(ClearCart(key))


@dataclass(frozen=True, slots=True)
class Broken:
    """A command with a bug: it reads what `sound` reads, and raises `error`."""

    sound: Mutation
    error: Exception

    def add_reads(self, reads: ReadSet) -> None:
        self.sound.add_reads(reads)

    def run(self, unit: UnitOfWork, now: int, new_id: NewId) -> bytes:
        raise self.error


@dataclass(frozen=True, slots=True)
class Impossible:
    """A command whose effect violates a CHECK of the database: a negative subtotal."""

    sound: Mutation

    def add_reads(self, reads: ReadSet) -> None:
        self.sound.add_reads(reads)

    def run(self, unit: UnitOfWork, now: int, new_id: NewId) -> bytes:
        reply = self.sound.run(unit, now, new_id)
        unit.put_cart(unit.carts[self.sound.call.cart]._replace(subtotal=-1))
        return reply


def broken(error: Exception, key: CartKey = KEY) -> Broken:
    """A command with a bug."""
    return Broken(add(key=key), error)


def refused_by_the_database(key: CartKey = KEY, sku: str = "poison") -> Any:
    """A command whose effect the database refuses, in the place of a Mutation."""
    return Impossible(add(sku, key=key))


async def claim(store: Store, lane: Lane = HOLD_LANE, limit: int = 100, lease: int = LEASE) -> list[Reservation]:
    # Without a poll, a claim looks only in the shards of which this process knows that they have due rows.
    store.due_shards.poll(everywhere=True)
    return await store.claim(Claim(lane, limit, lease))


async def claim_one(store: Store, lane: Lane = HOLD_LANE, lease: int = LEASE) -> Reservation:
    """Claim the only due reservation of the lane."""
    [claimed] = await claim(store, lane, lease=lease)
    return claimed


def answered(claimed: Reservation, **changes: Any) -> RecordOutcome:
    """The record of a call that was granted in full. `changes` replace fields of the decision."""
    releasing = claimed.disposition is Disposition.RELEASE
    decision = Decision(
        claimed.reservation_id,
        claimed.revision,
        Observed.RELEASED if releasing else Observed.HELD,
        0 if releasing else claimed.quantity,
        None if releasing else claimed.create_time + HOUR,
        "",
    )
    return RecordOutcome(claimed, replace(decision, **changes), 0)


def silent(claimed: Reservation, retry_delay: int = 0) -> RecordOutcome:
    """The record of a call without an answer."""
    return RecordOutcome(claimed, NoAnswer("UNAVAILABLE", "no answer"), retry_delay)


async def decided(store: Store, state: Observed = Observed.HELD, sku: str = SKU, /, **changes: object) -> Reservation:
    """Add an item, and record a decision for its reservation."""
    await store.mutate(add(sku))
    claimed = await claim_one(store)
    nothing = {} if state is Observed.HELD else {"granted_quantity": 0, "expire_time": None}
    await store.record(answered(claimed, state=state, **{**nothing, **changes}))
    return claimed


async def release_all(store: Store) -> None:
    """Claim the due releases, and record that each was released."""
    for claimed in await claim(store, RELEASE_LANE):
        await store.record(answered(claimed))


async def snapshot(store: Store, key: CartKey = KEY) -> Snapshot:
    """Read the cart, which must exist."""
    found = await store.reads.find_cart(key)
    assert found is not None
    return found


async def read_total(engine: Engine) -> int:
    """The total quantity in the cart KEY, 0 if it does not exist."""
    found = await Reads(engine).find_cart(KEY)
    return found.cart.total_quantity if found else 0


async def row_of(engine: Engine, reservation_id: str) -> Any:
    """A reservation's row."""
    table = schema.reservations
    statement = select(table).where(table.c.reservation_id == reservation_id)
    return await engine.transact(lambda connection: connection.execute(statement).one())


async def overwrite(engine: Engine, table: Any, *where: Any, **values: Any) -> None:
    """Set columns of a table by hand, in the rows that fulfil `where`."""
    await engine.transact(lambda connection: connection.execute(update(table).where(*where).values(values)))


async def count(engine: Engine, table: Any) -> int:
    """Count the rows of a table."""
    return int(
        await engine.transact(
            lambda connection: connection.execute(select(func.count()).select_from(table)).scalar_one()
        )
    )


def readable(found: Sequence[ReservationSnapshot | UnreadableReservation]) -> list[ReservationSnapshot]:
    """Return the found reservations. All of them must be readable."""
    snapshots = [each for each in found if isinstance(each, ReservationSnapshot)]
    assert len(snapshots) == len(found)
    return snapshots


def forbid(condition: str, connection: Connection) -> None:
    """Make the database refuse updates of `reservations` for whose new row, NEW, `condition` is true."""
    trigger = f"CREATE TRIGGER forbidding BEFORE UPDATE ON reservations FOR EACH ROW WHEN ({condition})"
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql(f"{trigger} BEGIN SELECT RAISE(ABORT, 'forbidden'); END")
        return
    connection.exec_driver_sql(
        "CREATE FUNCTION forbidding() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'forbidden' USING ERRCODE = 'check_violation'; END $$"
    )
    connection.exec_driver_sql(f"{trigger} EXECUTE FUNCTION forbidding()")


class Wrapped:
    """An engine that counts its transactions, and calls `committed` after each."""

    def __init__(self, engine: Engine) -> None:
        self.inner = engine
        self.dialect = engine.dialect
        self.locks_users = engine.locks_users
        self.name = engine.name
        self.is_shared = engine.is_shared
        self.hints = engine.hints
        self.is_in_process = engine.is_in_process
        self.has_log = engine.has_log
        self.schema = engine.schema
        self.transactions = 0

    @property
    def shards(self) -> Sequence[Engine]:
        """Its shards, whose transactions it counts, too."""
        schemas = [shard.schema for shard in self.inner.shards]
        return [Shard(self, schema) if schema else self for schema in schemas]

    def shard_of(self, slice_: int) -> Engine:
        return self.shards[shard_index(slice_, len(self.inner.shards))]

    async def transact(self, work: Callable[[Connection], T]) -> T:
        self.transactions += 1
        result = await self.inner.transact(work)
        await self.committed()
        return result

    async def read(self, work: Callable[[Connection], T]) -> T:
        return await self.inner.read(work)

    async def query(self, work: Callable[[Connection], T]) -> T:
        return await self.inner.query(work)

    def write_at_once(self, count: int) -> None:
        self.inner.write_at_once(count)

    def pools(self) -> Sequence[PoolUsage]:
        return self.inner.pools()

    async def committed(self) -> None:
        """Runs after a commit and before `transact` returns."""

    async def close(self) -> None:
        await self.inner.close()


def before_commit(engine: SqliteEngine | PostgresqlEngine, hook: Callable[[Connection], None]) -> Callable[[], None]:
    """Call `hook` before each commit; if it raises, there is no commit. Return a function that ends this."""
    real = engine._commit

    def commit(connection: Connection) -> None:
        hook(connection)
        real(connection)

    engine._commit = commit  # type: ignore[method-assign]

    def end() -> None:
        engine._commit = real  # type: ignore[method-assign]

    return end
