"""Probes of simulators: over the simulator's sockets, and in this process."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from cart_grpc import app
from cart_grpc.probe.calls import Log
from cart_grpc.probe.contract import Check
from cart_grpc.probe.findings import Verdict
from cart_grpc.probe.probe import Probe, connect
from cart_grpc.probe.report import Report
from cart_grpc.probe.reservation_v1 import RESERVATION_V1
from cart_grpc.probe.session import ProbeConfig, Session
from cart_grpc.simulator.faults import Faults
from cart_grpc.simulator.server import SimulatorServer
from cart_grpc.simulator.simulator import Simulator
from cart_grpc.simulator.stock import Stock
from tests.intents import SECOND
from tests.probe.in_process import InProcessApi

EVERY_RULE = {"1", "2", "3", "4", "5", "6", "7", "8", "reads", "batches"}
IN_PROCESS = "in process"
COUNTED = ProbeConfig(sku="beans", stock=10, ttl_us=0, timeout=5)
UNCOUNTED = ProbeConfig(sku="beans", ttl_us=0, timeout=5)
EVERYTHING = ProbeConfig("beans", 10, SECOND, commit=True, timeout=5)


def make(stock: type[Stock] = Stock, kind: type[Simulator] = Simulator, **faults: Any) -> Simulator:
    """A simulator with 10 units of `beans` and no other sku."""
    return kind(
        stock({"beans": 10}, default_total=None),
        faults=Faults(**faults),
        numbers=random.Random(1),
        clock=lambda: time.time_ns() // 1000,
    )


@asynccontextmanager
async def probing(simulator: Simulator, transport: str, config: ProbeConfig) -> AsyncIterator[Probe[Any]]:
    """Serve the simulator; yields a probe of it."""
    server = SimulatorServer(simulator)
    ports = await server.start("127.0.0.1:0", "127.0.0.1:0")
    url = f"grpc://127.0.0.1:{ports.grpc}" if transport == "grpc" else f"http://127.0.0.1:{ports.http}"
    try:
        async with connect(url, config, clock=app.clock, new_id=app.new_id) as one:
            yield one
    finally:
        await server.stop(0)


async def probe(
    simulator: Simulator,
    transport: str = IN_PROCESS,
    config: ProbeConfig = COUNTED,
    checks: tuple[Check[Session], ...] = RESERVATION_V1.checks,
) -> Report:
    """Run `checks` of the probe against the simulator."""
    contract = replace(RESERVATION_V1, checks=checks)
    if transport == IN_PROCESS:
        log, api = Log(), InProcessApi(simulator)
        new_session = partial(Session, api, config, log, app.clock, app.new_id)
        concurrency = 1 if config.stock is not None else 8
        return await Probe(contract, new_session, log, concurrency=concurrency).run(asyncio.Event())
    async with probing(simulator, transport, config) as one:
        one._contract = contract
        return await one.run(asyncio.Event())


def rules(report: Report, verdict: Verdict) -> set[str]:
    """The rules that have a finding with this verdict."""
    return {finding.rule for finding in report.findings if finding.verdict is verdict}
