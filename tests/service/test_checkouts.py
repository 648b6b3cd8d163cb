"""The sale of a cart, end to end: over gRPC, with the simulated Reservation API, on both databases."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from typing import Any

import grpc
import pytest
from cartgrpc.v1 import cart_admin_service_pb2 as admin_pb
from cartgrpc.v1 import cart_admin_service_pb2_grpc, cart_pb2, cart_service_pb2_grpc
from cartgrpc.v1 import cart_service_pb2 as pb
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2

from cart_grpc import app
from cart_grpc.cli import program as cli
from cart_grpc.settings import Settings
from cart_grpc.simulator.server import SimulatorConfig, SimulatorServer, make_simulator
from cart_grpc.simulator.simulator import Simulator
from cart_grpc.store.read import checkout_watches
from tests.gate import Gate
from tests.postgres import PostgresServer
from tests.rpc.refusal import Refusal, to_refusal
from tests.service.conftest import Replica, running_replica
from tests.service.shop import HOUR, Customer, ShiftedClock, Shop, Shown, State

DAY_US = 24 * 3600 * 1_000_000
Cart = cart_pb2.Cart


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path_factory.mktemp('shop')}/cart.db"
    postgres: PostgresServer = request.getfixturevalue("postgres")
    return postgres.create_database("cart_shop", template="template_cart")


@pytest.fixture(scope="module")
async def shop(url: str) -> AsyncIterator[Shop]:
    """One server for the whole module. Each test has its own user and skus."""
    gate, clock = Gate(), ShiftedClock()
    gate.open()
    config = SimulatorConfig(default_stock=10, latency_us=30_000_000, seed=1)
    simulator = make_simulator(config, clock=clock, sleep=gate.sleep)
    server = SimulatorServer(simulator)
    ports = await server.start("127.0.0.1:0", None)
    settings = Settings(
        listen="127.0.0.1:0",
        admin_listen="127.0.0.1:0",
        database_url=url,
        reservation_url=f"grpc://127.0.0.1:{ports.grpc}",
        reservation_poll_interval=0.05,
        reservation_backoff_max=0.2,
        housekeeping_interval=0.2,
        lame_duck=0.0,
        shutdown_grace=0.5,
    )
    async with AsyncExitStack() as stack:
        replica = await stack.enter_async_context(running_replica(settings))
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{replica.admin_port}")
        await stack.enter_async_context(channel)
        admin = cart_admin_service_pb2_grpc.CartAdminServiceStub(channel)
        yield Shop(replica, admin, settings, simulator, clock, gate)
    gate.open()
    await server.stop(0)


@pytest.fixture
def buyer(shop: Shop) -> Customer:
    """A new user."""
    return shop.user()


@contextmanager
def hanging(shop: Shop) -> Iterator[None]:
    """Until the end of the block, no call to the Reservation API is answered."""
    shop.gate.close()
    try:
        yield
    finally:
        shop.gate.open()


async def refused(call: Any) -> Refusal:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return to_refusal(caught.value)


def states_of(checkout: cart_pb2.Checkout) -> list[str]:
    """The states of the items' reservations, by sku."""
    return [Shown.Name(item.reservation.state).removeprefix("STATE_") for item in checkout.items]


async def test_a_cart_is_sold_and_its_name_is_free(shop: Shop, buyer: Customer) -> None:
    cart = await buyer.fill("beans", "tea")
    checkout = await buyer.begin()
    assert (checkout.state, checkout.ready, checkout.cart, checkout.cart_uid) == (
        State.STATE_OPEN, True, buyer.cart, cart.uid,
    )  # fmt: skip
    assert (checkout.item_count, checkout.total_quantity, checkout.subtotal.minor_units) == (2, 4, 2000)
    assert states_of(checkout) == ["RESERVED", "RESERVED"]
    frozen = await buyer.get_cart()
    assert (frozen.state, frozen.checkout) == (Cart.STATE_CHECKING_OUT, checkout.name)
    assert [item.name for item in checkout.items] == [item.name for item in frozen.items]
    sold = await buyer.complete(checkout.name)
    assert (sold.state, sold.order_reference, sold.reconciling) == (State.STATE_COMPLETED, "order-1", False)
    assert states_of(sold) == ["COMMITTED", "COMMITTED"]
    assert [item.name for item in sold.items] == [item.name for item in cart.items]
    assert await buyer.get(checkout.name) == sold
    levels = shop.simulator.levels(buyer.sku("tea"))
    assert (levels.held, levels.committed) == (0, 2)
    ended = await buyer.get_cart()
    assert (ended.state, ended.item_count, ended.checkout) == (Cart.STATE_CHECKED_OUT, 0, checkout.name)
    next_cart = await buyer.fill("beans")
    assert (next_cart.uid != cart.uid, next_cart.checkout, next_cart.item_count) == (True, "", 1)


async def test_a_new_cart_under_the_name_does_not_mix_with_a_sale_that_is_not_confirmed(
    shop: Shop, buyer: Customer
) -> None:
    await buyer.fill("beans")
    checkout = await buyer.begin()
    with hanging(shop):
        completing = await buyer.complete(checkout.name, max_wait=None)
        assert (completing.state, completing.reconciling) == (State.STATE_COMPLETING, True)
        assert states_of(completing) == ["COMMITTING"]
        # The same sku: the line has the name of the one that is being sold.
        item = cart_pb2.Item(sku=buyer.sku("beans"), quantity=1)
        added = await buyer.stub.AddItem(pb.AddItemRequest(parent=buyer.cart, item=item), timeout=10)
        assert added.item.name == completing.items[0].name
        seen = await buyer.get(checkout.name)
        assert [(each.quantity, each.uid) for each in seen.items] == [(2, completing.items[0].uid)]
        assert (await buyer.get_cart()).total_quantity == 1
    sold = await buyer.eventually(checkout.name, lambda seen: seen.state == State.STATE_COMPLETED)
    assert states_of(sold) == ["COMMITTED"]
    cart = await shop.replica.settled(buyer.cart)
    assert [each.reservation.state for each in cart.items] == [Shown.STATE_RESERVED]
    levels = shop.simulator.levels(buyer.sku("beans"))
    assert (levels.held, levels.committed) == (1, 2)


async def test_begin_refuses_items_that_are_not_reserved_and_names_each_of_them(shop: Shop, buyer: Customer) -> None:
    await buyer.fill("beans")
    await buyer.fill("rare", quantity=11)
    with hanging(shop):
        item = cart_pb2.Item(sku=buyer.sku("slow"), quantity=1)
        await buyer.stub.AddItem(pb.AddItemRequest(parent=buyer.cart, item=item), timeout=10)
        cart = await buyer.get_cart()
        refusal = await refused(buyer.begin())
    assert (refusal.code, refusal.info.reason) == ("FAILED_PRECONDITION", "NOT_RESERVED")
    failure = refusal.detail(error_details_pb2.PreconditionFailure)
    assert [(each.type, each.subject) for each in failure.violations] == [
        ("NOT_RESERVED", cart.items[1].name),
        ("NOT_RESERVED", cart.items[2].name),
    ]
    assert "REJECTED" in failure.violations[0].description
    assert "PENDING" in failure.violations[1].description
    assert (await buyer.get_cart()).state == Cart.STATE_ACTIVE


async def test_a_refusal_for_a_full_cart_fits_into_a_callers_metadata(shop: Shop) -> None:
    buyer = Customer(shop, f"users/{'u' * 128}")
    request = pb.BatchAddItemsRequest(parent=buyer.cart)
    for number in range(200):
        request.requests.add().item.sku = f"{number:0128}"
    with hanging(shop):
        await buyer.stub.BatchAddItems(request, timeout=10)
        refusal = await refused(buyer.begin())
        await buyer.stub.DeleteCart(pb.DeleteCartRequest(name=buyer.cart), timeout=10)
    assert (refusal.info.reason, refusal.info.metadata["count"]) == ("NOT_RESERVED", "200")
    assert refusal.detail(error_details_pb2.PreconditionFailure).violations


async def test_a_frozen_cart_refuses_changes_until_the_checkout_is_cancelled(shop: Shop, buyer: Customer) -> None:
    await buyer.fill("beans")
    checkout = await buyer.begin()
    more = pb.AddItemRequest(parent=buyer.cart, item=cart_pb2.Item(sku=buyer.sku("tea")))
    refusal = await refused(buyer.stub.AddItem(more, timeout=10))
    assert (refusal.code, refusal.info.reason) == ("FAILED_PRECONDITION", "CART_FROZEN")
    assert refusal.info.metadata["checkout"] == checkout.name
    assert refusal.info.metadata["expire_time"].startswith(f"{checkout.expire_time.ToDatetime():%Y-%m-%dT%H:%M:%S}")
    cancelled = await buyer.cancel(checkout.name)
    assert (cancelled.state, cancelled.ready, list(cancelled.items)) == (State.STATE_CANCELLED, False, [])
    assert await buyer.cancel(checkout.name) == cancelled
    cart = await buyer.get_cart()
    assert (cart.state, cart.checkout, cart.items[0].reservation.state) == (Cart.STATE_ACTIVE, "", Shown.STATE_RESERVED)
    await buyer.stub.AddItem(more, timeout=10)
    assert (await refused(buyer.complete(checkout.name))).info.reason == "CHECKOUT_CLOSED"


async def test_an_empty_an_ended_and_a_missing_cart_cannot_be_checked_out(buyer: Customer) -> None:
    assert (await refused(buyer.begin())).info.reason == "CART_NOT_FOUND"
    await buyer.stub.CreateCart(pb.CreateCartRequest(parent=buyer.name, cart_id="default"), timeout=10)
    assert (await refused(buyer.begin())).info.reason == "CART_EMPTY"
    await buyer.stub.DeleteCart(pb.DeleteCartRequest(name=buyer.cart), timeout=10)
    assert (await refused(buyer.begin())).info.reason == "CART_CLOSED"


async def test_a_double_click_gets_the_running_checkout_and_the_subtotal_is_checked_each_time(buyer: Customer) -> None:
    await buyer.fill("beans")
    wrong, right = (cart_pb2.Money(currency_code="EUR", minor_units=units) for units in (999, 1000))
    refusal = await refused(buyer.begin(expected_subtotal=wrong))
    assert (refusal.code, refusal.info.reason) == ("FAILED_PRECONDITION", "SUBTOTAL_MISMATCH")
    first, second = await asyncio.gather(buyer.begin(expected_subtotal=right), buyer.begin())
    assert first.name == second.name
    assert (await refused(buyer.begin(expected_subtotal=wrong))).info.reason == "SUBTOTAL_MISMATCH"


@pytest.mark.parametrize("window", [HOUR, Duration(seconds=24 * 3600)], ids=["an hour", "the longest"])
async def test_a_checkout_is_ready_once_its_holds_are_extended_beyond_the_window(
    shop: Shop, buyer: Customer, window: Duration
) -> None:
    await buyer.fill("beans")
    with hanging(shop):
        checkout = await buyer.begin(window=window, max_wait=Duration(nanos=1_000_000))
        assert (checkout.state, checkout.ready, checkout.reconciling) == (State.STATE_OPEN, False, True)
        # The extension of a hold does not show in its item.
        assert states_of(checkout) == ["RESERVED"]
        refusal = await refused(buyer.complete(checkout.name))
        assert (refusal.code, refusal.info.reason) == ("FAILED_PRECONDITION", "CHECKOUT_NOT_READY")
        waiting = asyncio.ensure_future(buyer.begin())
    ready = await waiting
    assert (ready.name, ready.ready, ready.reconciling) == (checkout.name, True, False)
    [item] = ready.items
    assert item.reservation.expire_time.ToMicroseconds() > ready.expire_time.ToMicroseconds()


async def test_a_cart_thaws_if_the_api_grants_less_time_than_the_window(shop: Shop, buyer: Customer) -> None:
    cart = await buyer.fill("beans")
    await shop.admin.PauseReservations(admin_pb.PauseReservationsRequest(reason="its next message will be changed"))
    began = await buyer.begin(window=HOUR, max_wait=None)
    assert (began.state, began.ready) == (State.STATE_OPEN, False)
    # The API grants the 5 minutes that it is asked for now, although the server needs more.
    reservation_id = cart.items[0].reservation.reservation_id
    await shop.run_sql("UPDATE reservations SET ttl_us = 300000000 WHERE reservation_id = :id", id=reservation_id)
    await shop.admin.ResumeReservations(admin_pb.ResumeReservationsRequest())
    checkout = await buyer.begin()
    assert (checkout.state, checkout.reason, checkout.ready) == (State.STATE_CANCELLED, "HOLD_TOO_SHORT", False)
    assert (await buyer.get_cart()).state == Cart.STATE_ACTIVE


async def test_after_the_window_a_checkout_cannot_be_completed_and_the_cart_is_active_again(
    shop: Shop, buyer: Customer
) -> None:
    await buyer.fill("beans")
    checkout = await buyer.begin()
    name = checkout.name.rpartition("/")[2]
    await shop.run_sql("UPDATE checkouts SET expire_time = 1 WHERE checkout_id = :name", name=name)
    assert (await refused(buyer.complete(checkout.name))).info.reason == "CHECKOUT_EXPIRED"
    expired = await buyer.eventually(checkout.name, lambda seen: seen.state == State.STATE_EXPIRED)
    assert list(expired.items) == []
    assert (await refused(buyer.complete(checkout.name))).info.reason == "CHECKOUT_EXPIRED"
    cart = await buyer.get_cart()
    assert (cart.state, cart.items[0].reservation.state) == (Cart.STATE_ACTIVE, Shown.STATE_RESERVED)


async def test_completing_twice_sells_once_and_another_order_is_refused(shop: Shop, buyer: Customer) -> None:
    await buyer.fill("beans")
    checkout = await buyer.begin()
    sales = await asyncio.gather(*(buyer.complete(checkout.name) for _ in range(3)))
    assert [each.state for each in sales] == [State.STATE_COMPLETED] * 3
    assert await buyer.complete(checkout.name) == sales[0]
    refusal = await refused(buyer.complete(checkout.name, "order-2"))
    assert (refusal.code, refusal.info.reason) == ("FAILED_PRECONDITION", "ORDER_REFERENCE_MISMATCH")
    assert refusal.info.metadata["order_reference"] == "order-1"
    assert (await refused(buyer.cancel(checkout.name))).info.reason == "CHECKOUT_COMPLETED"
    assert shop.simulator.levels(buyer.sku()).committed == 2


async def failed_sale(shop: Shop, buyer: Customer) -> cart_pb2.Checkout:
    """A checkout of two items that is FAILED: the Reservation API lost the hold on the second one."""
    await buyer.fill("beans", "rare")
    checkout = await buyer.begin()
    shop.clock.shift_us += DAY_US
    shop.simulator.set_stock(buyer.sku("rare"), 0)
    return await buyer.complete(checkout.name)


async def test_a_sale_that_failed_can_be_completed_again(shop: Shop, buyer: Customer) -> None:
    failed = await failed_sale(shop, buyer)
    assert (failed.state, failed.reconciling, states_of(failed)) == (
        State.STATE_FAILED, False, ["COMMITTED", "REJECTED"],
    )  # fmt: skip
    assert failed.items[1].reservation.reason == "OUT_OF_STOCK"
    assert (await refused(buyer.complete(failed.name, "order-2"))).info.reason == "ORDER_REFERENCE_MISMATCH"
    shop.simulator.set_stock(buyer.sku("rare"), 5)
    sold = await buyer.complete(failed.name)
    assert (sold.state, states_of(sold)) == (State.STATE_COMPLETED, ["COMMITTED", "COMMITTED"])
    assert shop.simulator.levels(buyer.sku("rare")).committed == 2


async def test_a_sale_that_failed_can_be_cancelled_and_shows_what_was_sold(shop: Shop, buyer: Customer) -> None:
    failed = await failed_sale(shop, buyer)
    cancelled = await buyer.cancel(failed.name)
    assert (cancelled.state, cancelled.reconciling, states_of(cancelled)) == (
        State.STATE_CANCELLED, False, ["COMMITTED", "REJECTED"],
    )  # fmt: skip
    assert await buyer.get(failed.name) == cancelled
    assert shop.simulator.levels(buyer.sku("beans")).committed == 2
    assert shop.simulator.levels(buyer.sku("rare")).held == 0


async def raw(shop: Shop, method: str, request: Any) -> bytes:
    """Call a method, and return its reply as it was sent."""
    call: Any = shop.replica.channel.unary_unary(
        f"/cartgrpc.v1.CartService/{method}", request_serializer=type(request).SerializeToString
    )
    reply: bytes = await call(request, timeout=15)
    return reply


async def test_a_repeated_request_id_gets_the_same_bytes_and_with_max_wait_the_current_state(
    shop: Shop, buyer: Customer
) -> None:
    await buyer.fill("beans")
    begin = pb.BeginCheckoutRequest(name=buyer.cart, request_id="begin")
    began = await raw(shop, "BeginCheckout", begin)
    checkout = await buyer.begin()
    complete = pb.CompleteCheckoutRequest(name=checkout.name, order_reference="o", request_id="complete")
    completed = await raw(shop, "CompleteCheckout", complete)
    assert pb.CompleteCheckoutResponse.FromString(completed).checkout.state == State.STATE_COMPLETING
    await buyer.eventually(checkout.name, lambda seen: seen.state == State.STATE_COMPLETED)
    assert await raw(shop, "BeginCheckout", begin) == began
    assert await raw(shop, "CompleteCheckout", complete) == completed
    complete.max_wait.seconds = 5
    current = pb.CompleteCheckoutResponse.FromString(await raw(shop, "CompleteCheckout", complete))
    assert current.checkout == await buyer.get(checkout.name)
    reused = pb.CancelCheckoutRequest(name=checkout.name, request_id="complete")
    assert (await refused(buyer.stub.CancelCheckout(reused, timeout=10))).info.reason == "REQUEST_ID_REUSED"


async def test_the_etag_of_a_checkout_changes_with_each_call_and_a_stale_one_is_refused(buyer: Customer) -> None:
    cart = await buyer.fill("beans")
    await buyer.fill("beans")
    assert (await refused(buyer.begin(etag=cart.etag))).info.reason == "ETAG_MISMATCH"
    checkout = await buyer.begin(etag=(await buyer.get_cart()).etag)
    stale = f'{checkout.etag[:-2]}f"'
    refusal = await refused(buyer.complete(checkout.name, etag=stale))
    assert (refusal.code, refusal.info.reason) == ("ABORTED", "ETAG_MISMATCH")
    assert refusal.info.metadata["current_etag"] == checkout.etag
    sold = await buyer.complete(checkout.name, etag=checkout.etag)
    assert sold.etag != checkout.etag


async def test_checkouts_are_listed_newest_first_in_pages_by_state_and_by_order(buyer: Customer) -> None:
    names = []
    for number in range(3):
        await buyer.fill("beans", quantity=1)
        names.append((await buyer.begin()).name)
        if number == 1:
            await buyer.complete(names[-1], 'o "1" \\')
        elif number == 0:
            await buyer.cancel(names[-1])
    listed = await buyer.list()
    assert [each.name for each in listed.checkouts] == names[::-1]
    assert all(not each.items and each.item_count == 1 for each in listed.checkouts)
    for filter_, expected in (
        ("state = COMPLETED", [names[1]]),
        ("state = OPEN OR state = CANCELLED", [names[2], names[0]]),
        ('order_reference = "o \\"1\\" \\\\"', [names[1]]),
        ('order_reference = "o"', []),
    ):
        assert [each.name for each in (await buyer.list(filter=filter_)).checkouts] == expected, filter_
    seen: list[str] = []
    token = ""
    while not seen or token:
        page = await buyer.list(page_size=1, page_token=token)
        seen += [each.name for each in page.checkouts]
        token = page.next_page_token
    assert seen == names[::-1]
    first = await buyer.list(page_size=1)
    other = await refused(buyer.list(page_token=first.next_page_token, filter="state = OPEN"))
    assert other.violations == {"page_token": "INVALID_PAGE_TOKEN"}


async def test_another_users_checkout_is_not_found(shop: Shop, buyer: Customer) -> None:
    await buyer.fill("beans")
    checkout = await buyer.begin()
    other = shop.user()
    name = checkout.name.replace(buyer.name, other.name)
    for call in (other.get(name), other.complete(name), other.cancel(name)):
        refusal = await refused(call)
        assert (refusal.code, refusal.info.reason) == ("NOT_FOUND", "CHECKOUT_NOT_FOUND")
        assert refusal.detail(error_details_pb2.ResourceInfo).resource_name == name
    assert list((await other.list()).checkouts) == []
    assert (await buyer.get(checkout.name)).state == State.STATE_OPEN


async def test_a_call_waits_for_answers_that_another_replica_records(
    shop: Shop, buyer: Customer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On PostgreSQL the other replica's hint wakes it.
    monkeypatch.setattr(checkout_watches, "LOOK_SECONDS", 60)
    await buyer.fill("beans")
    checkout = await buyer.begin()
    async with AsyncExitStack() as stack:
        replica = shop.replica
        if not shop.settings.is_embedded:
            replica = await stack.enter_async_context(running_replica(shop.settings, reconcile=False))
        elsewhere = Customer(replace(shop, replica=replica), buyer.name)
        with hanging(shop):
            waiting = asyncio.ensure_future(elsewhere.complete(checkout.name, max_wait=Duration(seconds=60)))
            completing = await buyer.eventually(checkout.name, lambda seen: seen.state == State.STATE_COMPLETING)
            assert states_of(completing) == ["COMMITTING"]
        # Less than the deadline of the call, at whose end it is answered anyway.
        async with asyncio.timeout(10):
            assert (await waiting).state == State.STATE_COMPLETED


async def test_each_answer_wakes_the_calls_that_wait_in_this_process(
    buyer: Customer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No look comes before the end of max_wait.
    monkeypatch.setattr(checkout_watches, "LOOK_SECONDS", 60)
    await buyer.fill("beans", "tea")
    checkout = await buyer.begin(window=HOUR)
    assert checkout.ready
    async with asyncio.timeout(5):
        assert (await buyer.complete(checkout.name)).state == State.STATE_COMPLETED


async def test_operators_find_a_sale_without_an_answer_and_end_it(shop: Shop, buyer: Customer) -> None:
    await buyer.fill("beans")
    checkout = await buyer.begin()
    with hanging(shop):
        await buyer.complete(checkout.name, buyer.name, max_wait=None)
        listed = await shop.admin.ListCheckouts(admin_pb.CartAdminServiceListCheckoutsRequest())
        assert checkout.name in [each.name for each in listed.checkouts]
        by_order = admin_pb.CartAdminServiceListCheckoutsRequest(order_reference=buyer.name)
        [found] = (await shop.admin.ListCheckouts(by_order)).checkouts
        assert (found.name, found.state, list(found.items)) == (checkout.name, State.STATE_COMPLETING, [])
        by_order.min_age.seconds = 3600
        assert not (await shop.admin.ListCheckouts(by_order)).checkouts
        request = admin_pb.ListReservationsRequest(parent=buyer.cart)
        [record] = (await shop.admin.ListReservations(request)).reservations
        assert record.checkout == checkout.name
        assert record.disposition == admin_pb.ReservationRecord.DISPOSITION_COMMIT
        assert record.shown_state == Shown.STATE_COMMITTING
        end = admin_pb.EndCheckoutRequest(name=checkout.name, reason="their ticket 17")
        refusal = await refused(shop.admin.EndCheckout(end))
        assert (refusal.code, refusal.info.reason) == ("FAILED_PRECONDITION", "CHECKOUT_COMPLETED")
        end.force = True
        ended = (await shop.admin.EndCheckout(end)).checkout
        assert (ended.state, ended.reason, states_of(ended)) == (
            State.STATE_COMPLETED, "ENDED_BY_OPERATOR", ["COMMITTED"],
        )  # fmt: skip
    seen = await shop.admin.GetCheckout(admin_pb.CartAdminServiceGetCheckoutRequest(name=checkout.name))
    assert seen.checkout == ended == await buyer.get(checkout.name)


async def test_an_open_checkout_that_an_operator_ends_gives_the_cart_back(shop: Shop, buyer: Customer) -> None:
    await buyer.fill("beans")
    checkout = await buyer.begin()
    end = admin_pb.EndCheckoutRequest(name=checkout.name, reason="their ticket 17")
    ended = (await shop.admin.EndCheckout(end)).checkout
    assert (ended.state, ended.reason) == (State.STATE_CANCELLED, "ENDED_BY_OPERATOR")
    assert (await buyer.get_cart()).state == Cart.STATE_ACTIVE


async def test_operators_page_through_the_checkouts_of_all_users(shop: Shop) -> None:
    names = set()
    for _ in range(3):
        buyer = shop.user()
        await buyer.fill("beans", quantity=1)
        names.add((await buyer.begin()).name)
    seen: list[str] = []
    states = [State.STATE_OPEN, State.STATE_CANCELLED]
    request = admin_pb.CartAdminServiceListCheckoutsRequest(page_size=2, states=states)
    times = []
    while True:
        page = await shop.admin.ListCheckouts(request)
        seen += [each.name for each in page.checkouts]
        times += [each.update_time.ToMicroseconds() for each in page.checkouts]
        request.page_token = page.next_page_token
        if not page.next_page_token:
            break
    assert len(seen) == len(set(seen))
    assert names <= set(seen)
    assert times == sorted(times)


async def test_operators_have_a_command_for_checkouts(
    shop: Shop, buyer: Customer, capsys: pytest.CaptureFixture[str]
) -> None:
    async def operate(*arguments: str) -> str:
        address = f"127.0.0.1:{shop.replica.admin_port}"
        assert await asyncio.to_thread(cli.main, ["checkouts", *arguments, "--address", address]) == 0
        return capsys.readouterr().out

    await buyer.fill("beans")
    checkout = await buyer.begin()
    with hanging(shop):
        await buyer.complete(checkout.name, buyer.name, max_wait=None)
        listed = (await operate("list", "--order", buyer.name)).splitlines()
        assert listed[0].split() == ["CHECKOUT", "STATE", "SINCE", "ITEMS", "SUBTOTAL", "ORDER", "CART", "WHY"]
        assert listed[1].split()[:2] == [checkout.name, "COMPLETING"]
        assert "  10.00 EUR  " in listed[1]
        assert (await operate("list", "--state", "failed", "--order", buyer.name)).splitlines()[1:] == []
        shown = await operate("show", checkout.name)
        assert "COMMITTING" in shown
        assert checkout.items[0].name in shown
        ended = await operate("end", checkout.name, "--reason", "their ticket 17", "--force", "--json")
    assert json.loads(ended)["state"] == "STATE_COMPLETED"


async def test_a_call_that_waits_is_answered_when_the_server_begins_to_stop(
    settings: Settings, gate: Gate, simulator: Simulator
) -> None:
    gate.open()
    async with app.running(settings.with_changes(shutdown_grace=10), serve=True, reconcile=True) as server:
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{server.port}")
        stub: Any = cart_service_pb2_grpc.CartServiceStub(channel)
        buyer = Customer(
            Shop(Replica(stub, channel, server.port), None, settings, simulator, ShiftedClock(), gate), "users/alice"
        )
        await buyer.fill("beans")
        checkout = await buyer.begin()
        gate.close()
        waiting = asyncio.ensure_future(buyer.complete(checkout.name, max_wait=Duration(seconds=50)))
        await buyer.eventually(checkout.name, lambda seen: seen.state == State.STATE_COMPLETING)
    # At the end of the grace, the server would cancel a call that still waits.
    assert (await waiting).state == State.STATE_COMPLETING
