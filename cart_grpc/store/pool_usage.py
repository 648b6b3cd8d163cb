"""How much of a connection pool is in use, for the gauges."""

from typing import NamedTuple

from cart_grpc.metrics import CONNECTIONS, CONNECTIONS_MAX, CONNECTIONS_PENDING


class PoolUsage(NamedTuple):
    """The connections of one pool: those that are idle and used, the most that it may open, and who waits for one."""

    name: str
    idle: int
    used: int
    most: int
    pending: int


def set_gauges(pool: PoolUsage) -> None:
    """Set the gauges of one pool."""
    CONNECTIONS.labels(pool.name, "idle").set(pool.idle)
    CONNECTIONS.labels(pool.name, "used").set(pool.used)
    CONNECTIONS_MAX.labels(pool.name).set(pool.most)
    CONNECTIONS_PENDING.labels(pool.name).set(pool.pending)
