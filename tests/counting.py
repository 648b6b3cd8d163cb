"""Looks at counters around a block: a test process counts for all of its tests."""

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import Counter, Gauge


def value_of(metric: Counter | Gauge) -> float:
    """Return the value of a metric without labels, or of one child."""
    (sample, *_) = (sample for family in metric.collect() for sample in family.samples)
    return sample.value


@contextmanager
def counting(counter: Counter, by: float = 1) -> Iterator[None]:
    """Assert that the block raises the counter, by this much."""
    before = value_of(counter)
    yield
    assert value_of(counter) == before + by
