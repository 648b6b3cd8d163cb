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
            await _jump(simulation, rng)


async def _jump(simulation: "Simulation", rng: Random) -> None:
    """Set the database's clock: by hours in either direction, or by less than HOLD_MARGIN.

    Callers see a hold end early by HOLD_MARGIN.
    """
    if not simulation.plan.clock_jumps:
        simulation.clock.set_to(int(rng.uniform(-1, 1) * 1_500_000))
        return
    hours = 0.0 if simulation.clock.skew and rng.random() < 0.5 else rng.uniform(0.1, 6) * rng.choice([-1, 1])
    await set_clock(simulation, int(hours * 3600 * 1_000_000), restarts=rng.random() < 0.3)


async def set_clock(simulation: "Simulation", skew: int, *, restarts: bool = False) -> None:
    """Set the database's clock, once every process has read it since the last time. Or while no process runs.

    A clock that is ahead for a moment, and back before anybody reads it, leaves rows that wait for hours.
    """
    for _ in range(300):
        if _is_time_known(simulation):
            # Replies that were cached before must not be used afterwards.
            await simulation.read_everywhere()
        if _is_time_known(simulation):
            await _set_clock(simulation, skew, restarts=restarts)
            await asyncio.sleep(10)
            await simulation.read_everywhere()
            return
        await asyncio.sleep(1)
    if simulation.clock.is_step_open:
        simulation.report_violation("nobody noticed that the clock was set back")


def _is_time_known(simulation: "Simulation") -> bool:
    clock = simulation.clock
    return not clock.is_step_open and all(one.knows_time(clock.now()) for one in simulation.replicas if one.alive)


async def _set_clock(simulation: "Simulation", skew: int, *, restarts: bool) -> None:
    simulation.log_event("clock", skew, restarts)
    for replica in simulation.replicas if restarts else ():
        replica.process.kill()
    simulation.clock.set_to(skew)
    if restarts:
        await asyncio.sleep(1)
        for index in range(len(simulation.replicas)):
            simulation.replace_replica(index)
