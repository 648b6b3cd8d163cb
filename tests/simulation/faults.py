"""Faults around the replicas: kills, graceful stops, pauses, partitions, outages and clock jumps."""

import asyncio
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.simulation.simulation import Simulation


async def inject_faults(simulation: "Simulation", kind: str, per_minute: float) -> None:
    """Inject one kind of fault at random times until the simulation heals."""
    rng = Random(f"{simulation.rng.random()} {kind}")
    while True:
        await asyncio.sleep(rng.expovariate(per_minute / 60))
        if simulation.healing:
            return
        index = rng.randrange(simulation.plan.replicas)
        simulation.log_event("nemesis", kind, index)
        await _inject_one(simulation, kind, index, rng)


async def _inject_one(simulation: "Simulation", kind: str, index: int, rng: Random) -> None:
    replica = simulation.replicas[index]
    duration = rng.choice([1.0, 10.0, 45.0]) * rng.random()
    match kind:
        case "kill":
            replica.process.kill()
            await asyncio.sleep(duration)
            simulation.replace_replica(index)
        case "stop":
            if replica.alive and not replica.process.paused:
                stopping = replica.process.start(replica.stop())
                await replica.process.outcome(stopping, 30)
                replica.process.kill()
                simulation.replace_replica(index)
        case "pause":
            replica.process.pause()
            await asyncio.sleep(duration)
            replica.process.resume()
        case "cut api":
            simulation.network.cut(replica.name)
            await asyncio.sleep(duration)
            simulation.network.reconnect(replica.name)
        case "cut database":
            simulation.database.cut(replica.name)
            await asyncio.sleep(duration)
            simulation.database.reconnect(replica.name)
        case "api down":
            simulation.network.is_down = True
            await asyncio.sleep(duration * rng.choice([1, 1, 1, 20]))
            simulation.network.is_down = False
        case "jump":
            # Less than HOLD_MARGIN, by which callers see a hold end early.
            simulation.database.skew = int(rng.uniform(-1, 1) * 1_500_000)
