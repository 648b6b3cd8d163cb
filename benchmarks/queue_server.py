"""The usual design with a job queue, for comparison: `orm_server` on PostgreSQL, and Procrastinate.

The job is queued in the transaction of the item, and runs in the same process. It calls the Reservation API, and
records the answer if it is the newest. A job that fails is tried again by Procrastinate. `python -m
benchmarks.queue_server URL RESERVATION_ADDRESS` prints its address.
"""

import asyncio
import logging
import sys

import grpc
import procrastinate
import uvloop
from cartgrpc.reservation.v1 import reservation_pb2, reservation_pb2_grpc
from google.protobuf import duration_pb2
from sqlalchemy import make_url, update
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from benchmarks.orm_server import Item, OrmCartService, connect, create_tables, serve

# As many as calls are in flight in the benchmark.
JOBS_AT_WORK = 64


class QueueCartService(OrmCartService):
    def __init__(self, sessions: async_sessionmaker[AsyncSession], reserve: procrastinate.tasks.Task) -> None:
        super().__init__(sessions)
        self._reserve = reserve

    async def _enqueue(self, session: AsyncSession, item: Item) -> None:
        await session.flush()
        connection = await (await session.connection()).get_raw_connection()
        job = self._reserve.configure(connection=connection.driver_connection)
        await job.defer_async(cart=item.cart, sku=item.sku)


async def main(url: str, reservation_address: str) -> None:
    parsed = make_url(url).set(drivername="postgresql+psycopg")
    sessions = connect(parsed.render_as_string())
    await create_tables(sessions)
    connector = procrastinate.PsycopgConnector(
        conninfo=f"host={parsed.query['host']} user={parsed.username} dbname={parsed.database}", max_size=16
    )
    app = procrastinate.App(connector=connector)
    channel = grpc.aio.insecure_channel(reservation_address)
    api = reservation_pb2_grpc.ReservationServiceStub(channel)

    @app.task(retry=procrastinate.RetryStrategy(max_attempts=100, wait=1))
    async def reserve(cart: str, sku: str) -> None:
        async with sessions() as session:
            item = await session.get_one(Item, (cart, sku))
        wanted = reservation_pb2.Reservation(
            reservation_id=item.reservation_id,
            revision=item.revision,
            sku=sku,
            quantity=item.quantity,
            disposition=reservation_pb2.Reservation.DISPOSITION_HOLD,
            ttl=duration_pb2.Duration(seconds=900),
        )
        answer = await api.ApplyReservation(reservation_pb2.ApplyReservationRequest(reservation=wanted), timeout=120)
        decided = answer.reservation
        is_this_item = (Item.cart == cart) & (Item.sku == sku) & (Item.reserved_revision < decided.revision)
        values = {"reserved_revision": decided.revision, "reserved_quantity": decided.granted_quantity}
        async with sessions.begin() as session:
            await session.execute(update(Item).where(is_this_item).values(values))

    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        working = asyncio.create_task(
            app.run_worker_async(
                concurrency=JOBS_AT_WORK, delete_jobs="successful", install_signal_handlers=False, wait=True
            )
        )
        await serve(QueueCartService(sessions, reserve))  # type: ignore[abstract]  # two calls are enough
        await working


if __name__ == "__main__":
    logging.getLogger("procrastinate").setLevel(logging.WARNING)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(sys.argv[1], sys.argv[2]))
