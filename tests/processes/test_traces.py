"""A trace outlives the process that began it, and a process that cannot trace does not start."""

import pytest
from cartgrpc.v1 import cart_pb2
from cartgrpc.v1 import cart_service_pb2 as pb

from tests.processes.harness import LISTENS, Programs, connected
from tests.telemetry.collector import running_collector

PARENT = f"00-{5:032x}-{6:016x}-01"


async def test_after_a_kill_another_process_links_its_call_to_the_call_that_caused_it(
    database_url: str, programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulated = await programs.simulate("--latency", "5m")
    settings = {
        "listen": "127.0.0.1:0",
        "database_url": database_url,
        "reservation_url": simulated.url,
        "reservation_lease": "1",
        "reservation_poll_interval": "0.1",
    }
    async with running_collector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"{collector.http_url}/v1/traces")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "lost")
        lost = programs.start("serve", **settings)
        async with connected((await lost.says(LISTENS))[1]) as client:
            request = pb.AddItemRequest(parent="users/alice/carts/default", item=cart_pb2.Item(sku="sku", quantity=1))
            await client.stub.AddItem(request, metadata=(("traceparent", PARENT),), timeout=10)
        cause = await collector.find(lambda span: span.trace == f"{5:032x}" and span.parent == f"{6:016x}")
        await simulated.until_called(1)
        lost.kill()
        await simulated.set_faults()
        monkeypatch.setenv("OTEL_SERVICE_NAME", "other")
        programs.start("serve", **settings)
        attempt = await collector.find(lambda span: span.service == "other" and cause.id in span.links)
    assert cause.service == "lost"
    assert attempt.attributes["cart.reservation.state"] == "HELD"
    assert programs.complaints() == []


async def test_a_wrong_variable_is_one_line_and_exit_status_2(
    programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "jaeger")
    program = programs.start("serve", listen="127.0.0.1:0", database_url="sqlite:///cart.db")
    assert await program.ended(30) == 2
    assert program.errors.strip().splitlines()[-1].endswith("OTEL_TRACES_EXPORTER: must be otlp or console or none")
