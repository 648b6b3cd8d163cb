"""A closed loop over HTTP, for the server without gRPC. It is in Python, because that server is far slower."""

import asyncio
import random
import time

import aiohttp

from benchmarks.programs import Json, Program


def measure(program: Program, calls: str, *, duration: float, in_flight: int = 64, carts: int = 1000) -> Json:
    """Measure one round of `add` or `get`, like `programs.measure`. Raises ClientResponseError unless 2xx."""
    before = program.cpu_seconds()
    latencies = asyncio.run(_run(program.address, calls, duration, in_flight, carts))
    cpu = program.cpu_seconds() - before
    if not latencies:
        raise RuntimeError(f"{calls}: no call was answered in {duration} s")
    latencies.sort()
    return {
        "per_s": len(latencies) / duration,
        "p50_us": latencies[len(latencies) // 2] * 1e6,
        "p99_us": latencies[len(latencies) * 99 // 100] * 1e6,
        "cpu_us": round(cpu / len(latencies) * 1e6, 1),
    }


async def _run(address: str, calls: str, duration: float, in_flight: int, carts: int) -> list[float]:
    latencies: list[float] = []
    ends = time.monotonic() + duration

    async def caller(session: aiohttp.ClientSession) -> None:
        while (started := time.monotonic()) < ends:
            cart = f"/carts/u{random.randrange(carts):07}"
            item = {"item": f"sku-{random.randrange(20):06}", "quantity": 1}
            asked = session.post(f"{cart}/items", json=item) if calls == "add" else session.get(cart)
            async with asked as response:
                await response.read()
            if (ended := time.monotonic()) < ends:
                latencies.append(ended - started)

    connector = aiohttp.TCPConnector(limit=in_flight)
    async with aiohttp.ClientSession(f"http://{address}", connector=connector, raise_for_status=True) as session:
        await asyncio.gather(*(caller(session) for _ in range(in_flight)))
    return latencies
