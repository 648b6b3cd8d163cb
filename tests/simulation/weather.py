"""What goes wrong around the replicas: kills, pauses, partitions, outages, clocks that jump."""

import asyncio
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.simulation.world import World


async def blow(world: "World", kind: str, per_minute: float) -> None:
    """One kind of trouble, again and again, until things heal."""
    numbers = Random(f"{world.numbers.random()} {kind}")
    while True:
        await asyncio.sleep(numbers.expovariate(per_minute / 60))
        if world.healing:
            return
        index = numbers.randrange(world.plan.replicas)
        world.tell("nemesis", kind, index)
        await _strike(world, kind, index, numbers)


async def _strike(world: "World", kind: str, index: int, numbers: Random) -> None:
    replica = world.replicas[index]
    lasting = numbers.choice([1.0, 10.0, 45.0]) * numbers.random()
    match kind:
        case "kill":
            replica.process.kill()
            await asyncio.sleep(lasting)
            world.replace(index)
        case "stop":
            if replica.alive and not replica.process.paused:
                stopping = replica.process.start(replica.stop())
                await replica.process.outcome(stopping, 30)
                replica.process.kill()
                world.replace(index)
        case "pause":
            replica.process.pause()
            await asyncio.sleep(lasting)
            replica.process.resume()
        case "cut api":
            world.network.cut(replica.name)
            await asyncio.sleep(lasting)
            world.network.mend(replica.name)
        case "cut database":
            world.database.cut(replica.name)
            await asyncio.sleep(lasting)
            world.database.mend(replica.name)
        case "api down":
            world.network.is_down = True
            await asyncio.sleep(lasting * numbers.choice([1, 1, 1, 20]))
            world.network.is_down = False
        case "jump":
            # Less than the margin by which a hold is shown as over before it is.
            world.database.skew = int(numbers.uniform(-1, 1) * 1_500_000)
