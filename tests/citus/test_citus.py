"""Shards on the nodes of a Citus cluster: no acknowledged write is lost when servers and nodes crash or shards move."""

import asyncio
import random
import signal
from collections.abc import Sequence

import pytest
from cartgrpc.v1 import cart_pb2, cart_service_pb2

from cart_grpc.names import user_key
from cart_grpc.store.shards import schema_names, shard_index
from tests.citus.cluster import Cluster, Database, Node
from tests.databases import SHARDS
from tests.processes.caller import Caller, History
from tests.processes.harness import LISTENS, Programs, Replicas
from tests.processes.load import Load
from tests.processes.test_crash import crash, settings_for, simulate

pytestmark = [pytest.mark.citus, pytest.mark.timeout(600)]
RESERVED = cart_pb2.Reservation.State.STATE_RESERVED


async def test_shards_are_on_all_nodes_and_a_second_migration_finds_nothing_to_do(
    database: Database, programs: Programs
) -> None:
    for _ in range(2):
        assert await programs.start("migrate", database_url=database.url).ended(120) == 0
    places = await database.places()
    assert sorted(places) == sorted(schema_names(SHARDS))
    assert {*places.values()} == {*database.cluster.workers}


async def test_no_acknowledged_write_is_lost_when_servers_are_killed(database: Database, programs: Programs) -> None:
    await crash("postgresql", database.url, programs, kills=10)


async def test_servers_may_connect_to_a_worker_and_no_acknowledged_write_is_lost_when_they_are_killed(
    database: Database, programs: Programs
) -> None:
    assert await programs.start("migrate", database_url=database.url).ended(120) == 0
    worker = database.cluster.url_of(database.cluster.workers[0], database.name)
    other = programs.start("migrate", database_url=worker, database_shards=str(2 * SHARDS))
    assert await other.ended(60) == 2
    assert f"set CART_DATABASE_SHARDS={SHARDS} instead of {2 * SHARDS}" in other.errors
    server = programs.start("serve", listen="127.0.0.1:0", database_url=worker, reservation_url="grpc://127.0.0.1:9")
    await server.says(LISTENS)
    restored = programs.start("reservations", "after-restore", database_url=database.url)
    assert await restored.ended(60) == 2
    assert "is in use: stop every cart-grpc first" in restored.errors
    server.send(signal.SIGTERM)
    assert await server.ended(60) == 0
    # Its `migrate` finds nothing to do.
    await crash("postgresql", worker, programs, kills=6)


@pytest.mark.parametrize("kind", ["worker", "coordinator"])
async def test_no_acknowledged_write_is_lost_when_a_node_crashes(
    kind: str, database: Database, programs: Programs
) -> None:
    cluster = database.cluster
    nodes: Sequence[Node] = cluster.workers if kind == "worker" else [cluster.coordinator]

    async def kill(_: Replicas, load: Load, kills: int, numbers: random.Random) -> None:
        for number in range(kills):
            await asyncio.sleep(numbers.uniform(0.5, 2.0))
            load.check()
            await cluster.crash(nodes[number % len(nodes)])
            await database.recover()

    await crash("postgresql", database.url, programs, kills=6, kill=kill)
    assert await database.prepared() == 0


async def test_no_acknowledged_write_is_lost_when_shards_move_to_other_nodes(
    database: Database, programs: Programs
) -> None:
    before: dict[str, Node] = {}

    async def move(_: Replicas, load: Load, kills: int, numbers: random.Random) -> None:
        before.update(await database.places())
        for schema in before:
            await asyncio.sleep(numbers.uniform(0.5, 1.0))
            load.check()
            await database.move(schema)
        load.check()

    await crash("postgresql", database.url, programs, kills=0, kill=move)
    after = await database.places()
    assert after.keys() == before.keys()
    assert all(after[schema] != place for schema, place in before.items())


# The coordinator's commit decides. It waits for a standby that does not exist, after both nodes have prepared. Or one
# node waits for one in PREPARE TRANSACTION, so that nothing is decided.
@pytest.mark.parametrize(("waits", "statement"), [("coordinator", "COMMIT"), ("worker", "PREPARE TRANSACTION%")])
async def test_a_merge_whose_two_phase_commit_is_interrupted_happens_once(
    waits: str, statement: str, database: Database, programs: Programs
) -> None:
    cluster = database.cluster
    simulated = await simulate(programs, "1")
    await simulated.set_faults()
    settings = settings_for(database.url, simulated)
    assert await programs.start("migrate", **settings).ended(120) == 0
    replicas = Replicas(programs, settings, 1)
    await replicas.start_all()
    caller = Caller(replicas, History(), "caller", "1")
    places = await database.places()
    source, target = (_find_user(places, worker) for worker in cluster.workers[:2])
    for user, sku in ((source, "beans"), (target, "kettle")):
        await _add(caller, f"users/{user}/carts/c", sku)
    node = cluster.coordinator if waits == "coordinator" else cluster.workers[0]
    # Otherwise Citus would recover the transactions as soon as the coordinator is back.
    await cluster.configure(cluster.coordinator, "citus.recover_2pc_interval", "-1")
    await cluster.configure(node, "synchronous_standby_names", "nobody")
    try:
        request = cart_service_pb2.MergeCartsRequest(name=f"users/{target}/carts/c", source=f"users/{source}/carts/c")
        merging = asyncio.create_task(caller.call("MergeCarts", request, cart_service_pb2.MergeCartsResponse))
        await _until_it_waits(cluster, database, node, statement)
        await cluster.crash(cluster.coordinator)
        await cluster.configure(node, "synchronous_standby_names", None)
        async with asyncio.timeout(30):
            while await database.prepared() < 2:
                await asyncio.sleep(0.02)
        assert not merging.done()
        assert await database.recover() == 2
    finally:
        for setting in ("synchronous_standby_names", "citus.recover_2pc_interval"):
            for each in (cluster.coordinator, node):
                await cluster.configure(each, setting, None)
    merged = await asyncio.wait_for(merging, 60)
    assert [(item.sku, item.quantity) for item in merged.cart.items] == [("beans", 2), ("kettle", 2)]
    while (cart := await caller.get(f"users/{target}/carts/c")).reconciling:
        await asyncio.sleep(0.1)
    assert [(item.sku, item.reservation.state) for item in cart.items] == [("beans", RESERVED), ("kettle", RESERVED)]
    held = [(await simulated.stock(sku)).held_quantity for sku in ("beans", "kettle")]
    assert held == [2, 2]
    assert await database.prepared() == 0
    assert await replicas.stop(0) == 0
    await caller.close()
    assert programs.complaints() == []


def _find_user(places: dict[str, Node], node: Node) -> str:
    """Return a user whose shard is on `node`."""
    schemas = schema_names(SHARDS)
    users = (f"user{number}" for number in range(1000))
    return next(user for user in users if places[schemas[shard_index(user_key(user).slice, SHARDS)]] == node)


async def _add(caller: Caller, cart: str, sku: str) -> None:
    request = cart_service_pb2.AddItemRequest(parent=cart, item=cart_pb2.Item(sku=sku, quantity=2))
    await caller.call("AddItem", request, cart_service_pb2.AddItemResponse)
    while (await caller.get(cart)).reconciling:
        await asyncio.sleep(0.05)


async def _until_it_waits(cluster: Cluster, database: Database, node: Node, statement: str) -> None:
    """Wait until `statement` of a session of this database waits on `node` for a standby."""
    waiting = "SELECT FROM pg_stat_activity WHERE datname = $1 AND wait_event = 'SyncRep' AND query LIKE $2"
    async with asyncio.timeout(30):
        while not await cluster.fetch(node, "postgres", waiting, database.name, statement):
            await asyncio.sleep(0.02)
