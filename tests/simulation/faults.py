"""Faults around the replicas: kills, graceful stops, pauses, partitions, outages, clock jumps and operators."""

import asyncio
from collections.abc import Callable
from functools import partial
from random import Random
from typing import TYPE_CHECKING

from cart_grpc.commands.checkout import EndCheckout
from cart_grpc.commands.direct import Pause, Resume
from tests.simulation.rows import find_paused

if TYPE_CHECKING:
    from tests.simulation.replica import SimulatedReplica
    from tests.simulation.simulation import Simulation


# These also last for minutes: until callers learn that the database is unavailable, or a whole run without batches.
LONG = ("cut database", "no batches")


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
    network, database, process = simulation.network, simulation.database, replica.process
    lasting: dict[str, tuple[Callable[[], None], Callable[[], None]]] = {
        "pause": (process.pause, process.resume),
        "cut api": (partial(network.cut, replica.name), partial(network.reconnect, replica.name)),
        "cut database": (partial(database.cut, replica.name), partial(database.reconnect, replica.name)),
        "no batches": (partial(setattr, network, "has_batches", False), partial(setattr, network, "has_batches", True)),
    }
    if kind in lasting:
        begin, end = lasting[kind]
        begin()
        await asyncio.sleep(duration * (rng.choice([1, 1, 5]) if kind in LONG else 1))
        end()
        return
    match kind:
        case "kill":
            process.kill()
            await asyncio.sleep(duration)
            simulation.replace_replica(index)
        case "stop":
            await _stop(simulation, index)
        case "api down":
            network.is_down = True
            await asyncio.sleep(duration * rng.choice([1, 1, 1, 20]))
            network.is_down = False
        case "pause claims":
            await _pause_claims(simulation, replica)
            await asyncio.sleep(duration)
            await resume_claims(simulation)
        case "end checkout":
            if name := simulation.choose_checkout(rng):
                ending = replica.intervene_in(EndCheckout(name, "for the simulation", force=False))
                await process.outcome(ending, 30)
                if ending.done() and not ending.cancelled():
                    simulation.log_event("ended", type(ending.exception()).__name__)
        case "jump":
            await _jump(simulation, rng)


async def _stop(simulation: "Simulation", index: int) -> None:
    replica = simulation.replicas[index]
    if not replica.alive or replica.process.paused:
        return
    stopping = replica.process.start(replica.stop())
    await replica.process.outcome(stopping, 30)
    if stopping.done() and simulation.plan.database_answers:
        simulation.checks.check_stopped(replica.name)
    replica.process.kill()
    simulation.replace_replica(index)


async def _pause_claims(simulation: "Simulation", replica: "SimulatedReplica") -> None:
    """Stop all claims. Once that is acknowledged, they are stopped in every shard."""
    # An earlier command whose outcome nobody has heard may still be written.
    is_alone = all(task.done() or not one.alive for one, task in simulation.resumptions)
    pausing = replica.intervene(Pause("for the simulation"))
    await replica.process.outcome(pausing, 30)
    is_acknowledged = pausing.done() and not pausing.cancelled() and not pausing.exception()
    missing = set(simulation.database.shards) - find_paused(simulation.database.raw)
    if is_acknowledged and is_alone and missing and not simulation.healing:
        simulation.report_violation(f"a pause was acknowledged, but the shards {missing} may claim")


async def resume_claims(simulation: "Simulation") -> None:
    """Allow claims again if an operator has stopped them."""
    while paused := find_paused(simulation.database.raw):
        if len(paused) < simulation.plan.shards:
            simulation.report_violation(f"a pause is in force only in the shards {set(paused)}")
        replica = simulation.choose_replica()
        if replica.alive and replica.serving:
            resuming = replica.intervene(Resume())
            simulation.resumptions.append((replica, resuming))
            await replica.process.outcome(resuming, 30)
        await asyncio.sleep(0.5)


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
