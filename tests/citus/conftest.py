"""The cluster that CITUS_URL names, and a database of its own for each test."""

import os
from collections.abc import AsyncIterator

import pytest

from tests.citus.cluster import Cluster, Database
from tests.processes.conftest import programs

__all__ = ["programs"]


@pytest.fixture(scope="session")
async def cluster() -> Cluster:
    """The cluster."""
    url = os.environ.get("CITUS_URL")
    if not url:
        pytest.fail("set CITUS_URL to a superuser's URL of a coordinator's database with Citus and two workers")
    cluster = Cluster(url)
    await cluster.open()
    return cluster


@pytest.fixture
async def database(cluster: Cluster) -> AsyncIterator[Database]:
    """An empty database."""
    async with cluster.create_database() as database:
        yield database
