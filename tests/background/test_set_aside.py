"""A reservation whose answer cannot be recorded is set aside, and the others go on."""

import asyncio
from functools import partial

import pytest

from cart_grpc import app
from cart_grpc.background.clock_watcher import ClockWatcher
from cart_grpc.background.config import ReconcilerConfig
from cart_grpc.background.reconciler import Reconciler
from cart_grpc.carts.progress import ProgressState, progress
from cart_grpc.reservation_api import transports
from cart_grpc.settings import Settings
from tests.background.clock import MonotonicClock
from tests.store.writes import add, forbid, snapshot


@pytest.mark.one_shard
async def test_an_answer_that_cannot_be_recorded_sets_its_reservation_aside(
    settings: Settings, simulator_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with app.running_store(settings) as store:
        for sku in ("bad", "good"):
            await store.mutate(add(sku))
        await store._engine.transact(partial(forbid, "NEW.sku = 'bad' AND NEW.observed_revision > 0"))
        api = transports.connect(simulator_url)
        watcher = ClockWatcher(store.clock(app.monotonic_us, 0))
        reconciler = Reconciler(store, api, ReconcilerConfig(), MonotonicClock(), watcher.run_once)
        await reconciler.run_once()
        async with asyncio.timeout(20):
            while reconciler.in_flight:
                await asyncio.sleep(0.005)
        await api.close()
        seen = await snapshot(store)
        states = {line.item.sku: progress(line, seen.now).state for line in seen.lines}
        assert states == {"bad": ProgressState.PENDING, "good": ProgressState.RESERVED}
        [bad] = [line.reservation for line in seen.lines if line.item.sku == "bad"]
        assert "forbidden" in bad.set_aside_reason
        assert f"ALARM reservation {bad.reservation_id}: set aside" in caplog.text
