"""A simple cart service for comparison: FastAPI, a SQLite file, and background tasks.

POST stores the item, answers, and calls the Reservation API in a background task. GET reads the cart. Pending
reservations exist in memory only, so a crash loses them. `python -m benchmarks.exercise_server DATABASE
RESERVATION_URL` prints its address.
"""

import asyncio
import sys
import uuid
from typing import Any

import httpx
import uvicorn
from fastapi import BackgroundTasks, FastAPI
from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "items"
    id: Mapped[str] = mapped_column(primary_key=True)
    cart: Mapped[str] = mapped_column(index=True)
    item: Mapped[str]
    quantity: Mapped[int]
    reservation_id: Mapped[str | None]


class NewItem(BaseModel):
    item: str
    quantity: int = 1


def exercise(database: str, reservation_url: str) -> FastAPI:
    engine = create_async_engine(f"sqlite+aiosqlite:///{database}", connect_args={"timeout": 60}, pool_timeout=60)
    sessions = async_sessionmaker(engine, expire_on_commit=False)

    # One client for all calls: a new one reads all certificates of the system first, which takes 30 ms.
    client = httpx.AsyncClient(timeout=30)

    async def create_tables(_: FastAPI) -> Any:
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        yield
        await client.aclose()

    app = FastAPI(lifespan=create_tables)

    async def reserve(item_id: str) -> None:
        async with sessions() as session:
            item = await session.get_one(Item, item_id)
            asked = {"id": item.id, "item": item.item, "quantity": item.quantity}
        response = await client.post(reservation_url, json=asked)
        async with sessions.begin() as session:
            item = await session.get_one(Item, item_id)
            item.reservation_id = response.json()["reservation_id"]

    @app.post("/carts/{cart}/items", status_code=201)
    async def add_item(cart: str, new: NewItem, tasks: BackgroundTasks) -> dict[str, Any]:
        async with sessions.begin() as session:
            item = Item(id=str(uuid.uuid4()), cart=cart, item=new.item, quantity=new.quantity)
            session.add(item)
        tasks.add_task(reserve, item.id)
        return {"id": item.id, "item": item.item, "quantity": item.quantity, "reservation_id": None}

    @app.get("/carts/{cart}")
    async def get_cart(cart: str) -> list[dict[str, Any]]:
        async with sessions() as session:
            items = await session.scalars(select(Item).where(Item.cart == cart))
            return [
                {"id": i.id, "item": i.item, "quantity": i.quantity, "reservation_id": i.reservation_id} for i in items
            ]

    return app


async def serve(database: str, reservation_url: str) -> None:
    config = uvicorn.Config(exercise(database, reservation_url), port=0, log_level="warning", loop="uvloop")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.01)
    print(f"listens on 127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", flush=True)
    await serving


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], sys.argv[2]))
