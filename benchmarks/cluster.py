"""The parts of an item's cost on a Citus cluster: CPU time of each process for batches of 1 to 64 items of one shard.

Run it by hand: `python -m benchmarks.cluster postgresql://postgres@127.0.0.1:5432/postgres`, with a superuser's URL of
the coordinator. All nodes must run on this machine. It measures through the coordinator, and connected to the worker
that has the shard, and, with `--plain URL`, on a PostgreSQL server without Citus. `benchmarks.scaling` has the figures.
"""

import argparse
import asyncio
import itertools
import json
import resource
import statistics
import time
from collections.abc import Sequence
from contextlib import suppress

import asyncpg
import psutil

from benchmarks.programs import Json
from cart_grpc import app, database_setup
from cart_grpc.names import CartKey, cart_key, user_key
from cart_grpc.protocol.reservation import Reservation
from cart_grpc.settings import Settings
from cart_grpc.store.shards import schema_names, shard_index
from cart_grpc.store.store import Store
from tests.citus.cluster import Cluster, Node
from tests.databases import SHARDS
from tests.store.claimant import FixedRoom
from tests.store.writes import add, answered

SIZES = (1, 4, 16, 64)
ITEMS_PER_SIZE = 512
FEWEST_BATCHES = 32
# More than a phase adds items to: an item is not claimed again before its answer is recorded.
CARTS = 4096
ROUNDS = 3
SHARD = 0


async def measure(url: str, servers: dict[str, int]) -> Json:
    """Measure batches on the database of `url`, which is migrated. `servers`: postmasters, by the name of their node.

    Returns, for each size, the milliseconds of a batch: elapsed (`ms`), of CPU in this process (`server`), and in each
    of `servers`; for batches of AddItem (`add`), and of the answers of the Reservation API (`record`). Medians.
    """
    async with app.open_engine(Settings(database_url=url, database_shards=SHARDS)) as engine:
        store = Store(engine, app.new_id, queue_size=10_000)
        store.notifier.claimant = claimant = FixedRoom()
        await store.start()
        keys = itertools.cycle(_carts())
        # Prepares the statements, and makes the carts.
        for size in (*SIZES, *SIZES):
            await _round(store, claimant, [next(keys) for _ in range(size)])
        rounds = [
            {size: await _measure_size(store, claimant, keys, size, servers) for size in SIZES} for _ in range(ROUNDS)
        ]
        await store.close()
    return {str(size): _medians([each[size] for each in rounds]) for size in SIZES}


def _medians(rounds: Sequence[Json]) -> Json:
    return {
        kind: {name: statistics.median(each[kind][name] for each in rounds) for name in names}
        for kind, names in rounds[0].items()
    }


async def _measure_size(
    store: Store, claimant: FixedRoom, keys: "itertools.cycle[CartKey]", size: int, servers: dict[str, int]
) -> Json:
    count = max(FEWEST_BATCHES, ITEMS_PER_SIZE // size)
    kinds: dict[str, Json] = {}
    claims: list[Sequence[Reservation]] = []
    for kind in ("add", "record"):
        before = _read(servers)
        for number in range(count):
            if kind == "add":
                claims.append(await _add(store, claimant, [next(keys) for _ in range(size)]))
            else:
                await store.record_all([answered(claimed) for claimed in claims[number]])
        after = _read(servers)
        kinds[kind] = {name: round((after[name] - before[name]) * 1000 / count, 3) for name in after}
    return kinds


async def _round(store: Store, claimant: FixedRoom, keys: Sequence[CartKey]) -> None:
    await store.record_all([answered(claimed) for claimed in await _add(store, claimant, keys)])


async def _add(store: Store, claimant: FixedRoom, keys: Sequence[CartKey]) -> Sequence[Reservation]:
    claimant.taken.clear()
    await asyncio.gather(*(store.mutate(add(key=key)) for key in keys))
    return list(claimant.taken)


def _carts() -> Sequence[CartKey]:
    keys = (cart_key(user_key(f"user-{number}"), "default") for number in itertools.count())
    return list(itertools.islice((key for key in keys if shard_index(key.slice, SHARDS) == SHARD), CARTS))


def _read(servers: dict[str, int]) -> dict[str, float]:
    """The seconds so far: elapsed, of CPU in this process, and in the processes of each server."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    clocks = {"ms": time.perf_counter(), "server": used.ru_utime + used.ru_stime}
    return clocks | {name: _cpu_seconds(pid) for name, pid in servers.items()}


def _cpu_seconds(postmaster: int) -> float:
    parent = psutil.Process(postmaster)
    ended = parent.cpu_times()
    seconds = ended.children_user + ended.children_system
    for process in (parent, *parent.children()):
        # A worker of autovacuum may end at any time.
        with suppress(psutil.NoSuchProcess):
            used = process.cpu_times()
            seconds += used.user + used.system
    return float(seconds)


async def _postmaster(url: str) -> int:
    connection = await asyncpg.connect(url)
    try:
        return int(await connection.fetchval("SELECT split_part(pg_read_file('postmaster.pid'), E'\\n', 1)"))
    finally:
        await connection.close()


async def measure_cluster(url: str) -> Json:
    """Measure through the coordinator, and connected to the worker that has the shard."""
    cluster = Cluster(url)
    await cluster.open()
    async with cluster.create_database() as database:
        async with app.open_engine(Settings(database_url=database.url, database_shards=SHARDS)) as engine:
            await database_setup.upgrade(engine)
        node = (await database.places())[schema_names(SHARDS)[SHARD]]
        servers = {
            "coordinator": await _postmaster(cluster.url_of(cluster.coordinator, database.name)),
            "node": await _postmaster(cluster.url_of(node, database.name)),
        }
        through: dict[str, Node] = {"coordinator": cluster.coordinator, "worker": node}
        return {name: await measure(cluster.url_of(each, database.name), servers) for name, each in through.items()}


async def measure_plain(url: str) -> Json:
    """Measure on an empty database of a PostgreSQL server."""
    async with app.open_engine(Settings(database_url=url, database_shards=SHARDS)) as engine:
        await database_setup.upgrade(engine)
    return {"plain": await measure(url, {"node": await _postmaster(url)})}


async def main() -> None:
    """Print the result as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster", description=__doc__)
    parser.add_argument("url", help="a superuser's URL of the coordinator")
    parser.add_argument("--plain", help="a superuser's URL of an empty database of a PostgreSQL server without Citus")
    options = parser.parse_args()
    found = await measure_cluster(options.url)
    if options.plain:
        found |= await measure_plain(options.plain)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    asyncio.run(main())
