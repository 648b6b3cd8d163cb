"""Scrapes of a metrics port, as Prometheus makes them."""

import asyncio
from collections.abc import Callable, Mapping
from typing import TypeAlias

import aiohttp
from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.parser import text_string_to_metric_families

from cart_grpc import metrics

Instrument: TypeAlias = Counter | Gauge | Histogram
# A sample's name and labels.
Series: TypeAlias = tuple[str, frozenset[tuple[str, str]]]
Scrape: TypeAlias = Mapping[Series, float]
WAIT_SECONDS = 20.0


def instruments() -> dict[str, Instrument]:
    """The instruments of metrics.py, by their names in Python."""
    return {name: value for name, value in vars(metrics).items() if isinstance(value, Instrument)}


def names_of(instrument: Instrument) -> set[str]:
    """The names of an instrument's samples."""
    (family,) = instrument.describe() or instrument.collect()
    suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}.get(family.type, ("",))
    return {f"{family.name}{suffix}" for suffix in suffixes}


def series(name: str, **labels: str) -> Series:
    return name, frozenset(labels.items())


async def scrape(port: int) -> Scrape:
    """Return the samples of a metrics port."""
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{port}/metrics", timeout=aiohttp.ClientTimeout(10)) as response,
    ):
        assert response.status == 200
        text = await response.text()
    return {
        series(sample.name, **sample.labels): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def until(port: int, holds: Callable[[Scrape], bool]) -> Scrape:
    """Scrape until `holds` is true for the samples, and return them. Fails after WAIT_SECONDS."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not holds(seen := await scrape(port)):
            await asyncio.sleep(0.05)
    return seen
