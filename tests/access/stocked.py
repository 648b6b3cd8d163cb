"""A server with every kind of port on a database in which users have carts and checkouts, and its answers."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import asyncpg
import grpc
from cartgrpc.v1 import cart_service_pb2 as pb
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from sqlalchemy import select

from cart_grpc import app
from cart_grpc.names import cart_key, user_key
from cart_grpc.settings import Settings
from cart_grpc.store.schema import metadata
from tests.access.guarded import Files
from tests.access.identities import SERVICES, Caller, Certificate, bearer
from tests.access.matrix import METHODS, A, B, Cell
from tests.access.rules import CARTS, Answer
from tests.access.targets import MISSING, ONCE, User, to
from tests.authentication.issuer import make_token, signing_key, write_key_set
from tests.pem import issue, new_authority
from tests.rpc.right import SKU
from tests.store.checkouts import begin
from tests.store.writes import add, answered, claim

# Each batch of commands writes the one, even if it changes nothing else, and the clock watcher the other.
TABLES = [name for name in metadata.tables if name not in ("commit_markers", "clock")]
# Characters. Shorter ones are in other texts by chance.
MIN_SIGNATURE = 40
# By table and user: the rows.
Rows = Mapping[tuple[str, str], frozenset[tuple[Any, ...]]]


@dataclass(frozen=True)
class Seen:
    """An answer, and all its bytes."""

    answer: Answer
    raw: Any


class Database:
    """Reads the whole database beside the server."""

    def __init__(self, settings: Settings, postgresql: asyncpg.Connection | None) -> None:
        self._postgresql = postgresql
        file = settings.database_url.get_secret_value().removeprefix("sqlite:///")
        self._sqlite = None if postgresql else sqlite3.connect(f"file:{file}?mode=ro", uri=True)

    async def read(self, *tables: str) -> Rows:
        """Read all tables, or these."""
        rows: dict[tuple[str, str], set[tuple[Any, ...]]] = {}
        for table in tables or TABLES:
            names = list(metadata.tables[table].columns.keys())
            index = names.index("user_id") if "user_id" in names else None
            for row in await self._all(str(select(metadata.tables[table]))):
                rows.setdefault((table, "" if index is None else str(row[index])), set()).add(tuple(row))
        return {key: frozenset(found) for key, found in rows.items()}

    async def version(self) -> int:
        """A number that changes with every commit; 0 on PostgreSQL, which has none that is as cheap."""
        return 0 if self._postgresql else int((await self._all("PRAGMA data_version"))[0][0])

    async def _all(self, sql: str) -> Any:
        if self._postgresql:
            return await self._postgresql.fetch(sql)
        assert self._sqlite
        return self._sqlite.execute(sql).fetchall()

    async def close(self) -> None:
        if self._postgresql:
            await self._postgresql.close()
        if self._sqlite:
            self._sqlite.close()


def changed(before: Rows, after: Rows) -> set[str]:
    """The users of whom a row differs; "" for rows of no user."""
    return {key[1] for key in before.keys() | after.keys() if before.get(key) != after.get(key)}


@dataclass
class Stocked:
    """The running server."""

    files: Files
    ports: app.Ports
    database: Database
    stack: AsyncExitStack
    users: dict[str, User]
    foreign: Any = field(default_factory=new_authority)
    _sent: dict[tuple[str, ...], Any] = field(default_factory=dict)
    _channels: dict[Any, grpc.aio.Channel] = field(default_factory=dict)

    def user(self, user_id: str) -> User:
        missing = User(f"users/{user_id}", f"users/{user_id}/checkouts/{MISSING}", f"reservations/{MISSING}", {})
        return self.users.get(user_id, missing)

    def secrets_of(self, cell: Cell) -> list[str]:
        """The signatures that the caller of a cell has sent."""
        sent = self._sent.get((cell.caller.port, cell.caller.name, cell.me), ())
        signatures = [value.rpartition(".")[2] for _, value in sent]
        return [signature for signature in signatures if len(signature) > MIN_SIGNATURE]

    async def ask(self, cell: Cell) -> Seen:
        """Make the call of a cell."""
        request = cell.target.build(cell.method, self.user(cell.me), self.user(cell.other))
        assert request is not None
        return await self.call(cell.caller, cell.method, request, cell.me)

    async def call(self, caller: Caller, method: str, request: Message | bytes, user_id: str) -> Seen:
        """Call a method as `caller`. Of a stream, read the first message."""
        data = request.SerializeToString() if isinstance(request, Message) else request
        channel = await self._channel(caller)
        # A token is sent more than once: the service remembers valid ones, and must not remember others.
        key = caller.port, caller.name, user_id
        if key not in self._sent:
            self._sent[key] = tuple(caller.send(user_id))
        sent: dict[str, Any] = {"timeout": 30, "metadata": self._sent[key]}
        try:
            if METHODS[method].server_streaming:
                streaming: Any = channel.unary_stream(f"/{method}")
                stream = streaming(data, **sent)
                reply = await stream.read()
                stream.cancel()
            else:
                unary: Any = channel.unary_unary(f"/{method}")
                reply = await unary(data, **sent)
        except grpc.aio.AioRpcError as error:
            return Seen(_to_answer(error), (error.code(), error.details(), error.trailing_metadata()))
        return Seen(Answer(), reply)

    async def _channel(self, caller: Caller) -> grpc.aio.Channel:
        key = (caller.port, None if caller.plaintext else caller.certificate)
        if key not in self._channels:
            self._channels[key] = await self.stack.enter_async_context(self._open(*key))
        return self._channels[key]

    def _open(self, port: str, shown: Certificate | None) -> Any:
        setting = {"token": "port", "service": "service_port", "operator": "admin_port", "health": "health_port"}[port]
        number = getattr(self.ports, setting)
        if shown is None:
            return grpc.aio.insecure_channel(f"127.0.0.1:{number}")
        authority = self.foreign if shown.foreign else self.files.callers
        return self.files.open(number, issue(authority, shown.name, expired=shown.expired) if shown.name else None)


def _to_answer(error: grpc.aio.AioRpcError) -> Answer:
    rich = rpc_status.from_call(error)  # type: ignore[arg-type]
    info, details = error_details_pb2.ErrorInfo(), dict[str, str]()
    for packed in rich.details if rich else ():
        bad = error_details_pb2.BadRequest()
        if packed.Is(info.DESCRIPTOR):
            packed.Unpack(info)
            details = details or dict(info.metadata)
        elif packed.Is(bad.DESCRIPTOR):
            packed.Unpack(bad)
            details = {each.field: each.reason for each in bad.field_violations}
    return Answer(error.code().name, info.reason, details)


@asynccontextmanager
async def stocked(files: Files, cells: Iterable[Cell], **changes: Any) -> AsyncIterator[Stocked]:
    """A server in whose database the users of the cells have a cart and a checkout."""
    write_key_set(files.folder / "keys.json", signing_key("ES256"), signing_key("RS256"))
    settings = files.settings(services=SERVICES, **changes)
    ids = {A, B} | {user for cell in cells for user in cell.changes if not user.endswith(".nobody")}
    await _stock(settings, ids)
    async with AsyncExitStack() as stack:
        ports = await stack.enter_async_context(app.running(settings, serve=True, reconcile=False))
        postgresql = None
        if not settings.is_embedded:
            postgresql = await asyncpg.connect(settings.database_url.get_secret_value().replace("+asyncpg", ""))
        database = Database(settings, postgresql)
        stack.push_async_callback(database.close)
        server = Stocked(files, ports, database, stack, await _find_users(database))
        for user_id in (A, B):
            await _use(server, user_id)
        yield server


async def _stock(settings: Settings, ids: set[str]) -> None:
    """Give each user a cart with an item that is held, and another with an open checkout; A and B one more."""
    carts = [cart_key(user_key(user), cart_id) for user in ids for cart_id in ("default", "frozen")]
    carts += [cart_key(user_key(user), "also-frozen") for user in (A, B)]
    async with app.running_store(settings) as store:
        await asyncio.gather(*(store.mutate(add(SKU, key=key)) for key in carts))
        while claimed := await claim(store):
            await asyncio.gather(*(store.record(answered(each)) for each in claimed))
        await asyncio.gather(*(store.mutate(begin(key)) for key in carts if key.cart_id != "default"))


async def _find_users(database: Database) -> dict[str, User]:
    rows = await database.read("reservations", "checkouts")
    users: dict[str, User] = {}
    for (table, user), found in rows.items():
        known = users.get(user, User(f"users/{user}", "", "", {}))
        names = list(metadata.tables[table].columns.keys())
        values = [dict(zip(names, row, strict=True)) for row in found]
        if table == "checkouts":
            [one, *_] = [f"users/{user}/checkouts/{row['checkout_id']}" for row in values if row["cart_id"] == "frozen"]
            users[user] = replace(known, checkout=one)
        else:
            [one] = [f"reservations/{row['reservation_id']}" for row in values if row["cart_id"] == "default"]
            users[user] = replace(known, reservation=one)
    return users


async def _use(server: Stocked, user_id: str) -> None:
    """Use ONCE, and get the page tokens."""
    caller = Caller("", "token", send=lambda user: bearer(make_token(user)))
    request = to(f"{CARTS}/AddItem", server.users[user_id])
    request.request_id = ONCE
    await server.call(caller, f"{CARTS}/AddItem", request, user_id)
    tokens = {}
    for name, response in (("ListCarts", pb.ListCartsResponse), ("ListCheckouts", pb.ListCheckoutsResponse)):
        request = to(f"{CARTS}/{name}", server.users[user_id])
        request.page_size = 1
        seen = await server.call(caller, f"{CARTS}/{name}", request, user_id)
        tokens[name] = response.FromString(seen.raw).next_page_token
    assert all(tokens.values())
    server.users[user_id] = replace(server.users[user_id], page_tokens=tokens)
