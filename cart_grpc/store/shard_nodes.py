"""Which shards are on the same node, and so have the same clock: on Citus by its catalog, elsewhere all of them."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Final

from sqlalchemy import Connection, text

from cart_grpc.store.engine import Engine
from cart_grpc.store.shards import has_citus

# All tables of a schema are on one node, so one of them says where. A schema that is not distributed has no row.
_NODES: Final = text("""
    SELECT nspname, groupid
    FROM pg_dist_placement JOIN pg_dist_shard USING (shardid) JOIN pg_class ON pg_class.oid = logicalrelid
    JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE relname = 'clock' AND shardstate = 1
""")


class ShardNodes:
    """The nodes of one database. A shard may move to another one at any time."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._is_distributed: bool | None = None if len(engine.shards) > 1 else False

    async def find(self) -> Sequence[Sequence[int]]:
        """Return the numbers of the shards of each node. Raises the database's errors."""
        if self._is_distributed is None:
            self._is_distributed = await self._engine.query(has_citus)
        if not self._is_distributed:
            return [range(len(self._engine.shards))]
        places = await self._engine.query(_find_places)
        nodes: dict[int | None, list[int]] = defaultdict(list)
        for number, shard in enumerate(self._engine.shards):
            nodes[places.get(shard.schema)].append(number)
        return list(nodes.values())


def _find_places(connection: Connection) -> dict[str | None, int]:
    return {schema: group for schema, group in connection.execute(_NODES)}  # noqa: C416 - for mypy, rows are no pairs
