"""The rules and the dashboard with a real Prometheus, which scrapes a real server."""

import asyncio
import math
import subprocess
from pathlib import Path

import pytest
from cartgrpc.v1 import cart_pb2
from cartgrpc.v1 import cart_service_pb2 as pb
from google.protobuf.duration_pb2 import Duration

from cart_grpc.settings import Settings
from tests.debian.prometheus import Prometheus, find_program, running_prometheus
from tests.monitoring.promql import PANELS, RULES_FILE, TESTS_FILE
from tests.service.conftest import CART, Replica, running_replica

pytestmark = [pytest.mark.debian, pytest.mark.timeout(120)]
WAIT = Duration(seconds=10)
# Nothing of this happens to a server that works: these panels may be empty.
MAY_BE_EMPTY = {"Calls that the service failed", "Backlog", "Certificates"}


def test_promtool_accepts_the_rules_and_they_fire_when_they_should() -> None:
    for command, file in (("check", RULES_FILE), ("test", TESTS_FILE)):
        arguments = [find_program("promtool"), command, "rules", str(file)]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.with_changes(metrics_listen="127.0.0.1:0", reservation_poll_interval=0.5, housekeeping_interval=0.5)


async def shop(replica: Replica) -> None:
    """Sell a cart, be refused once, watch another cart, and leave an item in it."""
    await replica.add("tea", max_wait=WAIT.ToTimedelta())
    checkout = (await replica.stub.BeginCheckout(pb.BeginCheckoutRequest(name=CART, max_wait=WAIT))).checkout
    request = pb.CompleteCheckoutRequest(name=checkout.name, order_reference="order-1", max_wait=WAIT)
    sold = (await replica.stub.CompleteCheckout(request)).checkout
    assert sold.state == cart_pb2.Checkout.STATE_COMPLETED
    with pytest.raises(Exception, match="etag"):
        await replica.add("tea", etag="old")
    await replica.add("coffee")
    await replica.get()


@pytest.fixture
def backend() -> str:
    return "sqlite"


async def test_a_real_prometheus_answers_every_query_of_the_dashboard_and_evaluates_every_rule(
    settings: Settings, tmp_path: Path
) -> None:
    async with running_replica(settings) as replica:
        await shop(replica)
        watch = replica.stub.WatchCart(pb.WatchCartRequest(name=CART))
        await watch.read()
        with running_prometheus(tmp_path, [f"127.0.0.1:{replica.metrics_port}"]) as prometheus:
            await asyncio.to_thread(prometheus.until, "count_over_time(cart_ready[1m]) > 3")
            await shop(replica)
            await asyncio.to_thread(prometheus.until, "increase(cart_checkouts_ended_total[30s]) > 0")
            empty = await asyncio.to_thread(ask_every_panel, prometheus)
            assert empty <= MAY_BE_EMPTY
            assert await asyncio.to_thread(prometheus.find_rule_errors) == {}
            assert await asyncio.to_thread(prometheus.query, "job:cart_calls_failed:rate5m > 0") == []
            assert await asyncio.to_thread(prometheus.query, 'ALERTS{alertstate="firing"}') == []


def ask_every_panel(prometheus: Prometheus) -> set[str]:
    """Ask every query of the dashboard. Return the titles of the panels for which one has no number as its answer."""
    empty = set()
    for panel in PANELS:
        for target in panel["targets"]:
            query = target["expr"].replace("$__rate_interval", "30s").replace("$job", ".+")
            if all(math.isnan(float(series["value"][1])) for series in prometheus.query(query)):
                empty.add(panel["title"])
    return empty
