"""Clocks that tests set, a key set from a file, and one https server with a key set."""

import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from cart_grpc.authentication.key_set import KeySet
from cart_grpc.authentication.key_sources import FileSource, UrlSource
from cart_grpc.authentication.refusals import TokenInvalid
from cart_grpc.authentication.tokens import Tokens
from cart_grpc.settings import Settings
from tests.authentication.issuer import AUDIENCE, ISSUER, signing_key, to_key_set, write_key_set
from tests.authentication.key_server import KeyServer

NOW = 1_800_000_000.0
LEEWAY = 10.0
ALGORITHMS = Settings().token_algorithms


class Clock:
    """A clock in seconds that stands still until a test sets it."""

    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    """A file with a key for each algorithm that is allowed by default."""
    return write_key_set(tmp_path / "keys.json", *map(signing_key, ALGORITHMS))


@pytest.fixture
async def key_set(key_file: Path, clock: Clock) -> KeySet:
    """The keys in `key_file`, loaded once."""
    keys = KeySet(FileSource(key_file), ALGORITHMS, clock=clock)
    await keys.load()
    return keys


@pytest.fixture
def tokens(key_set: KeySet, clock: Clock) -> Tokens:
    return to_tokens(key_set, clock)


@pytest.fixture(scope="session")
async def running_key_server() -> AsyncIterator[KeyServer]:
    async with KeyServer().running() as server:
        yield server


@pytest.fixture
def key_server(running_key_server: KeyServer) -> KeyServer:
    """The https server, with the key for ES256."""
    running_key_server.reset(to_key_set(signing_key("ES256")))
    return running_key_server


@pytest.fixture
async def keys(key_server: KeyServer, clock: Clock) -> KeySet:
    """The keys of the https server, loaded once."""
    keys = to_key_set_of(key_server, clock)
    await keys.load()
    return keys


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """The warnings so far."""
    caplog.set_level(logging.WARNING)
    return lambda: [record.getMessage() for record in caplog.records]


def to_tokens(keys: KeySet, clock: Callable[[], float]) -> Tokens:
    return Tokens(keys, issuer=ISSUER, audience=AUDIENCE, leeway=LEEWAY, clock=clock)


def to_key_set_of(server: KeyServer, clock: Clock) -> KeySet:
    return KeySet(UrlSource(server.url, server.trust), ALGORITHMS, clock=clock)


async def knows(keys: KeySet, kid: str) -> bool:
    try:
        return (await keys.get(kid)).kid == kid
    except TokenInvalid:
        return False
