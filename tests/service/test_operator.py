"""An operator sees each kind of stuck reservation and can end it. Over real sockets."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import grpc
import pytest
from cartgrpc.v1 import cart_admin_service_pb2 as pb
from cartgrpc.v1 import cart_admin_service_pb2_grpc, cart_pb2, cart_service_pb2
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from cart_grpc.app import clock
from cart_grpc.settings import Settings
from cart_grpc.simulator.faults import Faults
from tests.service.conftest import Service, running_replica

State = pb.ReservationRecord.State
Shown = cart_pb2.Reservation.State


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.with_changes(admin_listen="127.0.0.1:0")


class Admin:
    """An operator's client of CartAdminService."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.stub: Any = cart_admin_service_pb2_grpc.CartAdminServiceStub(channel)

    async def list(self, *states: "State.ValueType") -> Sequence[pb.ReservationRecord]:
        """The reservations in `states`; without states, the unanswered ones."""
        response = await self.stub.ListReservations(pb.ListReservationsRequest(states=states), timeout=10)
        found: Sequence[pb.ReservationRecord] = response.reservations
        return found

    async def until(
        self, holds: Callable[[Sequence[pb.ReservationRecord]], bool], *states: "State.ValueType"
    ) -> Sequence[pb.ReservationRecord]:
        """List reservations until `holds` is true for the list, and return it."""
        seen: Sequence[pb.ReservationRecord] = ()
        for _ in range(1000):
            seen = await self.list(*states)
            if holds(seen):
                return seen
            await asyncio.sleep(0.02)
        raise AssertionError(f"the condition never became true for {seen}")

    async def stats(self) -> pb.GetReservationStatsResponse:
        response: pb.GetReservationStatsResponse = await self.stub.GetReservationStats(
            pb.GetReservationStatsRequest(), timeout=10
        )
        return response

    async def until_stats(
        self, holds: Callable[[pb.GetReservationStatsResponse], bool]
    ) -> pb.GetReservationStatsResponse:
        """Read the statistics until `holds` is true for them, and return them."""
        for _ in range(1000):
            seen = await self.stats()
            if holds(seen):
                return seen
            await asyncio.sleep(0.02)
        raise AssertionError("the condition never became true")

    async def retry(self, name: str) -> pb.ReservationRecord:
        request = pb.CartAdminServiceRetryReservationRequest(name=name)
        record: pb.ReservationRecord = (await self.stub.RetryReservation(request, timeout=10)).reservation
        return record

    async def release(self, name: str, *, force: bool = False) -> pb.ReservationRecord:
        request = pb.ReleaseReservationRequest(name=name, reason="their ticket 17", force=force)
        record: pb.ReservationRecord = (await self.stub.ReleaseReservation(request, timeout=10)).reservation
        return record


@pytest.fixture
async def admin(service: Service) -> AsyncIterator[Admin]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{service.admin_port}") as channel:
        yield Admin(channel)


async def run_sql(service: Service, sql: str) -> None:
    """Run one statement in the service's database."""
    url = service.settings.database_url.get_secret_value()
    scheme = "sqlite+aiosqlite" if service.settings.is_embedded else "postgresql+asyncpg"
    engine = create_async_engine(f"{scheme}{url[url.index(':') :]}")
    async with engine.begin() as connection:
        await connection.execute(text(sql))
    await engine.dispose()


def name_of(item: cart_pb2.Item) -> str:
    return f"reservations/{item.reservation.reservation_id}"


async def test_an_outage_shows_in_the_backlog_which_drains_after_it(service: Service, admin: Admin) -> None:
    service.simulator.faults = Faults(down=True)
    for number in range(8):
        await service.add(f"sku-{number}")
    stats = await admin.until_stats(lambda seen: seen.reconciler.breaker_open)
    assert abs(stats.reconciler.breaker_open_time.ToMicroseconds() - clock()) < 20_000_000
    assert sum(one.count for one in stats.backlog) == 8
    listed = await admin.until(lambda seen: any(one.last_error for one in seen))
    assert [one.item for one in listed] == [item.name for item in (await service.get()).items]
    assert {one.shown_state for one in listed} == {Shown.STATE_PENDING}
    assert "UNAVAILABLE" in "".join(one.last_error for one in listed)
    service.simulator.faults = Faults()
    await service.settled()
    assert await admin.list() == []
    stats = await admin.stats()
    assert (len(stats.backlog), stats.due_count, stats.reconciler.breaker_open) == (0, 0, False)


async def test_a_row_with_failing_attempts_is_listed_and_can_be_released(service: Service, admin: Admin) -> None:
    service.simulator.faults = Faults(garbage=1.0)
    item = await service.add()
    [poison] = await admin.until(lambda listed: bool(listed) and listed[0].attempt_count >= 3)
    assert (poison.name, poison.sku, poison.shown_state) == (name_of(item), item.sku, Shown.STATE_PENDING)
    assert poison.last_error
    released = await admin.release(poison.name)
    assert released.disposition == pb.ReservationRecord.DISPOSITION_RELEASE
    assert (await admin.release(poison.name, force=True)).state == State.STATE_REJECTED
    assert await admin.list() == []
    cart = await service.get()
    assert cart.items[0].reservation.state == Shown.STATE_REJECTED
    assert cart.items[0].reservation.reason == "RELEASED_BY_OPERATOR"
    service.simulator.faults = Faults()
    await service.stub.RetryReservation(cart_service_pb2.RetryReservationRequest(name=item.name))
    cart = await service.settled()
    assert cart.items[0].reservation.state == Shown.STATE_RESERVED
    assert name_of(cart.items[0]) != poison.name


async def test_an_operators_release_frees_the_stock_and_keeps_the_item(service: Service, admin: Admin) -> None:
    item = await service.add(quantity=3)
    before = await service.settled()
    await admin.release(name_of(item))
    cart = await service.eventually(lambda seen: seen.items[0].reservation.state == Shown.STATE_REJECTED)
    assert cart.items[0].reservation.reason == "RELEASED_BY_OPERATOR"
    assert (cart.etag, cart.items[0].quantity) == (before.etag, 3)
    assert service.simulator.levels(item.sku).held == 0


async def test_a_release_that_is_always_refused_can_be_forced_and_the_waiting_hold_goes_on(
    service: Service, admin: Admin, caplog: pytest.LogCaptureFixture
) -> None:
    old = await service.add()
    await service.settled()
    service.simulator.faults = Faults(refused=1.0)
    await service.stub.RemoveItem(cart_service_pb2.RemoveItemRequest(name=old.name))
    new = await service.add()
    seen = await admin.until(lambda listed: any(one.attempt_count >= 2 for one in listed))
    by_name = {one.name: one for one in seen}
    assert by_name[name_of(new)].state == State.STATE_WAITING
    refused = by_name[name_of(old)]
    assert (refused.disposition, refused.shown_state) == (
        pb.ReservationRecord.DISPOSITION_RELEASE,
        Shown.STATE_RELEASING,
    )
    kinds = {(one.state, one.count) for one in (await admin.stats()).backlog}
    assert (State.STATE_WAITING, 1) in kinds
    # From here calls hang: the hold is called for as soon as it waits no more, and must not be refused.
    service.gate.close()
    service.simulator.faults = Faults(latency_us=1)
    ended = await admin.release(refused.name, force=True)
    assert (ended.state, ended.shown_state) == (State.STATE_RELEASED, Shown.STATE_UNSPECIFIED)
    assert ended.HasField("finish_time")
    assert f"ALARM reservation {old.reservation.reservation_id}: an operator" in caplog.text
    service.gate.open()
    cart = await service.settled()
    assert cart.items[0].reservation.state == Shown.STATE_RESERVED


async def test_a_rejected_item_is_listed_and_can_be_retried(service: Service, admin: Admin) -> None:
    service.simulator.set_stock("rare", 0)
    item = await service.add("rare")
    await service.settled()
    assert await admin.list() == []
    [rejected] = await admin.list(State.STATE_REJECTED)
    assert (rejected.name, rejected.shown_state) == (name_of(item), Shown.STATE_REJECTED)
    assert rejected.reason
    service.simulator.set_stock("rare", 1)
    await admin.retry(rejected.name)
    cart = await service.eventually(lambda seen: seen.items[0].reservation.state == Shown.STATE_RESERVED)
    assert cart.items[0].reservation.reserved_quantity == 1


async def test_an_expired_hold_is_listed_and_can_be_retried(service: Service, admin: Admin) -> None:
    item = await service.add()
    await service.settled()
    await admin.stub.PauseReservations(pb.PauseReservationsRequest(reason="nothing is to be renewed"))
    await run_sql(service, "UPDATE reservations SET expire_time = 1, due_time = 9000000000000000")
    [expired] = await admin.list(State.STATE_EXPIRED)
    assert (expired.name, expired.shown_state) == (name_of(item), Shown.STATE_EXPIRED)
    retried = await admin.retry(expired.name)
    assert (retried.state, retried.revision) == (State.STATE_DUE, expired.revision + 1)
    await admin.stub.ResumeReservations(pb.ResumeReservationsRequest())
    await service.eventually(lambda seen: seen.items[0].reservation.state == Shown.STATE_RESERVED)


async def test_a_hanging_call_is_listed_and_can_be_repeated(service: Service, admin: Admin) -> None:
    service.gate.close()
    item = await service.add()
    await service.gate.until_waiting(1)
    [calling] = await admin.list()
    assert (calling.name, calling.state, calling.attempt_count) == (name_of(item), State.STATE_CALLING, 1)
    assert calling.HasField("lease_expire_time")
    assert not calling.HasField("next_attempt_time")
    assert (await admin.stats()).reconciler.in_flight_count == 1
    await admin.retry(calling.name)
    await service.gate.until_waiting(2)
    service.gate.open()
    await service.settled()
    assert service.simulator.levels(item.sku).held == 1


async def test_a_pause_stops_the_calls_of_every_replica_while_callers_go_on(service: Service, admin: Admin) -> None:
    await service.add("under-way")
    await service.settled()
    before = service.simulator.call_count
    await admin.stub.PauseReservations(pb.PauseReservationsRequest(reason="their maintenance"))
    item = await service.add()
    stats = await admin.stats()
    assert (stats.pause.reason, stats.due_count) == ("their maintenance", 1)
    [waiting] = await admin.list()
    assert (waiting.name, waiting.state) == (name_of(item), State.STATE_DUE)
    if not service.settings.is_embedded:
        async with running_replica(service.settings) as other:
            await other.add("kettle")
            # Both replicas have polled several times by then.
            await admin.until_stats(lambda seen: clock() - seen.oldest_due_time.ToMicroseconds() > 500_000)
    assert service.simulator.call_count == before
    await admin.stub.ResumeReservations(pb.ResumeReservationsRequest())
    await service.settled()
    assert not (await admin.stats()).HasField("pause")


async def test_a_committing_reservation_cannot_be_released_by_an_operator(service: Service, admin: Admin) -> None:
    item = await service.add()
    await service.settled()
    committing = "UPDATE reservations SET disposition = 2, revision = revision + 1, intent_revision = revision + 1, "
    await run_sql(service, committing + "due_time = 9000000000000000")
    for force in (False, True):
        with pytest.raises(grpc.aio.AioRpcError, match="COMMITTING") as caught:
            await admin.release(name_of(item), force=force)
        assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    [seen] = await admin.list()
    assert seen.item == item.name


async def test_a_row_that_no_claim_can_process_is_shown_and_ended_while_the_others_are_reserved(
    service: Service, admin: Admin
) -> None:
    bad = await service.add("bad")
    await service.settled()
    last = "revision = 4611686018427387904, observed_revision = 4611686018427387904, due_time = 0"
    await run_sql(service, f"UPDATE reservations SET {last}")  # noqa: S608 - all of it is written here
    for number in range(10):
        await service.add(f"good-{number}")
    [record] = await admin.until(lambda listed: [one.state for one in listed] == [State.STATE_SET_ASIDE])
    assert (record.name, record.item) == (name_of(bad), bad.name)
    assert "reservations_last" in record.set_aside_reason
    cart = await service.settled()
    assert {item.reservation.state for item in cart.items} == {Shown.STATE_RESERVED}
    assert [(one.state, one.count) for one in (await admin.stats()).backlog] == [(State.STATE_SET_ASIDE, 1)]
    assert (await admin.retry(record.name)).state in (State.STATE_DUE, State.STATE_HELD)
    await admin.until(lambda listed: [one.state for one in listed] == [State.STATE_SET_ASIDE])
    with pytest.raises(grpc.aio.AioRpcError, match="try ReleaseReservation with force") as caught:
        await admin.release(record.name)
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert (await admin.release(record.name, force=True)).state == State.STATE_REJECTED
    assert await admin.list() == []
