"""The usual design for comparison, with the same proto: one SQLAlchemy ORM session per request, one commit per call.

Item, request_id and outbox row are in one transaction, with the same durability settings. SQLite has one writer at a
time, because more would only contend for the lock. PostgreSQL has sixteen connections. There are no interceptors and no
validation. `python -m benchmarks.orm_server URL` prints its address.
"""

import asyncio
import sys
import uuid
from datetime import UTC, datetime
from typing import Any

import grpc
import uuid_utils
import uvloop
from cartgrpc.v1 import cart_pb2, cart_service_pb2, cart_service_pb2_grpc
from sqlalchemy import event, make_url, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from cart_grpc.rpc.server import OPTIONS


class Base(DeclarativeBase):
    pass


class Cart(Base):
    __tablename__ = "orm_carts"
    name: Mapped[str] = mapped_column(primary_key=True)
    revision: Mapped[int] = mapped_column(default=0)


class Item(Base):
    __tablename__ = "orm_items"
    cart: Mapped[str] = mapped_column(primary_key=True)
    sku: Mapped[str] = mapped_column(primary_key=True)
    quantity: Mapped[int]
    create_time: Mapped[datetime] = mapped_column(default=lambda: datetime.now(UTC).replace(tzinfo=None))
    # For `queue_server`: the intended and the reserved quantity.
    reservation_id: Mapped[str]
    revision: Mapped[int]
    reserved_revision: Mapped[int] = mapped_column(default=0)
    reserved_quantity: Mapped[int] = mapped_column(default=0)


class Request(Base):
    __tablename__ = "orm_requests"
    request_id: Mapped[str] = mapped_column(primary_key=True)


class Outbox(Base):
    __tablename__ = "orm_outbox"
    id: Mapped[str] = mapped_column(primary_key=True)
    cart: Mapped[str]
    sku: Mapped[str]
    quantity: Mapped[int]


class OrmCartService(cart_service_pb2_grpc.CartServiceServicer):
    def __init__(self, sessions: async_sessionmaker[AsyncSession]) -> None:
        self._sessions = sessions

    async def AddItem(  # noqa: N802 - named after the RPC
        self, request: cart_service_pb2.AddItemRequest, context: Any
    ) -> cart_service_pb2.AddItemResponse:
        try:
            item, revision = await self._add(request.parent, request.item, request.request_id)
        except IntegrityError:
            # Another call has created the same cart or item.
            item, revision = await self._add(request.parent, request.item, request.request_id)
        return cart_service_pb2.AddItemResponse(item=_to_message(item), revision=revision)

    async def _add(self, name: str, asked: cart_pb2.Item, request_id: str) -> tuple[Item, int]:
        async with self._sessions() as session, session.begin():
            cart = await session.get(Cart, name, with_for_update=True)
            if cart is None:
                cart = Cart(name=name, revision=0)
                session.add(cart)
            cart.revision += 1
            item = await session.get(Item, (name, asked.sku))
            if item is None:
                item = Item(cart=name, sku=asked.sku, quantity=0, revision=0, reservation_id=str(uuid_utils.uuid7()))
                session.add(item)
            item.quantity += asked.quantity
            item.revision += 1
            session.add(Request(request_id=request_id))
            await self._enqueue(session, item)
        return item, cart.revision

    async def _enqueue(self, session: AsyncSession, item: Item) -> None:
        session.add(Outbox(id=str(uuid.uuid4()), cart=item.cart, sku=item.sku, quantity=item.quantity))

    async def GetCart(  # noqa: N802 - named after the RPC
        self, request: cart_service_pb2.GetCartRequest, context: Any
    ) -> cart_service_pb2.GetCartResponse:
        async with self._sessions() as session:
            cart = await session.get(Cart, request.name)
            items = (await session.scalars(select(Item).where(Item.cart == request.name).order_by(Item.sku))).all()
        message = cart_pb2.Cart(
            name=request.name, items=[_to_message(item) for item in items], revision=cart.revision if cart else 0
        )
        return cart_service_pb2.GetCartResponse(cart=message)


def _to_message(item: Item) -> cart_pb2.Item:
    message = cart_pb2.Item(name=f"{item.cart}/items/{item.sku}", sku=item.sku, quantity=item.quantity)
    message.create_time.FromDatetime(item.create_time)
    return message


def connect(url: str) -> async_sessionmaker[AsyncSession]:
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        engine = create_async_engine(parsed, pool_size=16, max_overflow=0, pool_timeout=60)
        return async_sessionmaker(engine, expire_on_commit=False)
    engine = create_async_engine(
        parsed.set(drivername="sqlite+aiosqlite"), pool_size=1, max_overflow=0, pool_timeout=60
    )

    @event.listens_for(engine.sync_engine, "connect")
    def prepare(connection: Any, _: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.close()

    return async_sessionmaker(engine, expire_on_commit=False)


async def create_tables(sessions: async_sessionmaker[AsyncSession]) -> None:
    async with sessions() as session:
        connection = await session.connection()
        await connection.run_sync(Base.metadata.create_all)
        await session.commit()


async def serve(servicer: OrmCartService) -> None:
    server = grpc.aio.server(options=OPTIONS)
    cart_service_pb2_grpc.add_CartServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"listens on 127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


async def main(url: str) -> None:
    sessions = connect(url)
    await create_tables(sessions)
    await serve(OrmCartService(sessions))  # type: ignore[abstract]  # two calls are enough


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(sys.argv[1]))
