"""The cost of shards on one PostgreSQL: reserved items with several shards, beside one shard in the same rounds."""

from collections.abc import Callable
from functools import partial
from typing import Final

from benchmarks.plan import IN_FLIGHT, Plan
from benchmarks.programs import Json, Product, Testbed, interleave
from benchmarks.reserved import reserve, wait_until_reserved

COUNTS: Final = (1, 4, 32)
LOADS: Final = (IN_FLIGHT, 4 * IN_FLIGHT, 8 * IN_FLIGHT)


def shards(testbed: Testbed, database: str, plan: Plan) -> Json | None:
    """Measure the reserved item with each number of shards, at three loads. None on SQLite, which has one shard."""
    if database == "sqlite":
        return None
    products = {count: _serve(testbed, database, count) for count in COUNTS}
    contenders: dict[str, Callable[[], Json]] = {
        _name(count, load): partial(reserve, testbed, product, seconds=plan.seconds, in_flight=load)
        for load in LOADS
        for count, product in products.items()
    }
    # The first rounds make the carts, and prepare the statements of each shard in each session.
    interleave(contenders, 2)
    rounds = interleave(contenders, plan.rounds)
    for product in products.values():
        wait_until_reserved(product)
        product.program.stop()
    return rounds


def pairs() -> list[tuple[str, str]]:
    """The names of the contenders to compare: several shards, and one."""
    return [(_name(count, load), _name(1, load)) for load in LOADS for count in COUNTS[1:]]


def _name(count: int, load: int) -> str:
    return f"{count} {'shards' if count > 1 else 'shard'}, {load} in flight"


def _serve(testbed: Testbed, database: str, count: int) -> Product:
    return testbed.serve(testbed.database(database, shard_count=count), CART_DATABASE_SHARDS=str(count))
