"""The issuer replaces its keys while a server runs, or is away: by the answers of the server, not by its parts."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.access.guarded import Files, add, running
from tests.access.test_rotation import until
from tests.authentication.issuer import make_token, signing_key, to_key_set
from tests.authentication.key_server import KeyServer
from tests.rpc.refusal import to_refusal

OLD, NEW, UNKNOWN = (signing_key("ES256", number) for number in (1, 2, 3))
Ask = Callable[[str], Awaitable[tuple[str, ...]]]
ACCEPTED = ("OK",)
REFUSED = ("TOKEN_INVALID", "UNKNOWN_KEY")
AWAY = ("TOKEN_KEYS_UNAVAILABLE",)


@asynccontextmanager
async def asking(files: Files, **changes: Any) -> AsyncIterator[Ask]:
    """A server, and a function that sends it a token: "OK", or the reason and the fault."""
    async with running(files, **changes) as server, files.open(server.ports.port) as channel:

        async def ask(token: str) -> tuple[str, ...]:
            try:
                await add(channel, token)
            except grpc.aio.AioRpcError as error:
                info = to_refusal(error).info
                return (info.reason, *info.metadata.values())
            return ACCEPTED

        yield ask


def becomes(ask: Ask, token: str, answer: tuple[str, ...]) -> Awaitable[None]:
    async def holds() -> bool:
        return await ask(token) == answer

    return until(holds)


async def test_a_new_key_in_the_file_is_accepted_and_a_removed_one_refused_with_the_tokens_it_signed(
    tmp_path: Path,
) -> None:
    files = Files(tmp_path)
    files.write("keys.json", to_key_set(OLD))
    old, new = make_token(key=OLD), make_token(key=NEW)
    async with asking(files) as ask:
        # The second time the token is remembered.
        assert [await ask(old), await ask(old), await ask(new)] == [ACCEPTED, ACCEPTED, REFUSED]
        files.write("keys.json", to_key_set(OLD, NEW))
        await becomes(ask, new, ACCEPTED)
        assert await ask(old) == ACCEPTED
        files.write("keys.json", to_key_set(NEW))
        await becomes(ask, old, REFUSED)
        assert [await ask(make_token("alice", key=OLD)), await ask(new)] == [REFUSED, ACCEPTED]
        # A key of the same name is another key.
        files.write("keys.json", to_key_set(UNKNOWN.renamed(NEW.kid)))
        await becomes(ask, new, ("TOKEN_INVALID", "SIGNATURE"))


@pytest.fixture
async def issuer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[KeyServer]:
    """A server of keys that this process trusts."""
    async with KeyServer().running() as server:
        monkeypatch.setenv("SSL_CERT_FILE", str(server.write_authority(tmp_path / "issuer.pem")))
        server.reset(to_key_set(OLD))
        yield server


async def test_a_key_at_the_url_is_replaced_and_the_keys_are_kept_while_the_issuer_is_away(
    issuer: KeyServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    old, new = make_token(key=OLD), make_token(key=NEW)
    async with asking(Files(tmp_path), token_keys=issuer.url) as ask:
        await becomes(ask, old, ACCEPTED)
        issuer.status = 500
        # Nobody knows whether there is such a key.
        await becomes(ask, new, AWAY)
        assert [await ask(old), await ask(make_token("alice", key=OLD, jti="not remembered"))] == [ACCEPTED] * 2
        issuer.reset(to_key_set(NEW))
        await becomes(ask, new, ACCEPTED)
        assert await ask(old) == REFUSED
    # The URL may have a secret in it.
    assert issuer.url not in caplog.text


async def test_without_keys_every_token_is_unavailable_until_the_issuer_answers(
    issuer: KeyServer, tmp_path: Path
) -> None:
    issuer.status = 503
    async with asking(Files(tmp_path), token_keys=issuer.url) as ask:
        assert [await ask(make_token(key=OLD)), await ask(make_token(key=UNKNOWN))] == [AWAY, AWAY]
        # A token that can never be valid.
        assert (await ask("x.y.z"))[0] == "TOKEN_INVALID"
        issuer.reset(to_key_set(OLD))
        await becomes(ask, make_token(key=OLD), ACCEPTED)
