"""The memory of verified tokens: it saves work, it forgets tokens that are over, and nobody can fill it."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from jwt.algorithms import ECAlgorithm

from cart_grpc.authentication import tokens as tokens_module
from cart_grpc.authentication.key_set import KeySet
from cart_grpc.authentication.refusals import TokenInvalid
from cart_grpc.authentication.tokens import Tokens
from tests.authentication.conftest import NOW, Clock, to_tokens
from tests.authentication.issuer import make_token, signing_key, write_key_set

ES256 = signing_key("ES256")


def token(user_id: str = "alice", **changes: Any) -> str:
    return make_token(user_id, now=NOW, **changes)


def rewrite(file: Path) -> None:
    """Write the same JSON in another way."""
    file.write_text(json.dumps(json.loads(file.read_text()), indent=4))


class Checks:
    """The number of ES256 signatures that the library has checked."""

    count = 0


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> Checks:
    checks, verify = Checks(), ECAlgorithm.verify

    def verify_and_count(algorithm: ECAlgorithm, *arguments: Any) -> bool:
        checks.count += 1
        return verify(algorithm, *arguments)

    monkeypatch.setattr(ECAlgorithm, "verify", verify_and_count)
    return checks


async def test_a_remembered_token_costs_no_check_of_its_signature(tokens: Tokens, checks: Checks) -> None:
    text = token()
    assert tokens.find(text) is None
    caller = await tokens.verify(text)
    assert all(tokens.find(text) == caller for _ in range(10))
    assert checks.count == 1


async def test_only_the_very_same_token_is_remembered(tokens: Tokens) -> None:
    text = token()
    await tokens.verify(text)
    for other in (text[:-1], text + "=", text + " ", text.swapcase(), text.rpartition(".")[0] + "."):
        assert tokens.find(other) is None


async def test_a_flood_of_invalid_tokens_forgets_no_valid_one_and_costs_a_check_each(
    tokens: Tokens, checks: Checks, monkeypatch: pytest.MonkeyPatch, key_set: KeySet, clock: Clock
) -> None:
    monkeypatch.setattr(tokens_module, "MAX_REMEMBERED", 10)
    tokens = to_tokens(key_set, clock)
    valid = [token(f"user-{number}") for number in range(10)]
    for text in valid:
        await tokens.verify(text)
    start, _, signature = valid[0].rpartition(".")
    for number in range(200):
        with pytest.raises(TokenInvalid):
            await tokens.verify(f"{start}.{number:04d}{signature[4:]}")
    assert checks.count == 10 + 200
    assert all(tokens.find(text) for text in valid)


async def test_the_memory_is_bounded_and_forgets_what_was_not_used_for_longest(
    monkeypatch: pytest.MonkeyPatch, key_set: KeySet, clock: Clock
) -> None:
    monkeypatch.setattr(tokens_module, "MAX_REMEMBERED", 5)
    tokens = to_tokens(key_set, clock)
    texts = [token(f"user-{number}") for number in range(8)]
    for text in texts:
        await tokens.verify(text)
        tokens.find(texts[0])
    assert [number for number, text in enumerate(texts) if tokens.find(text)] == [0, 4, 5, 6, 7]


async def test_a_change_of_the_keys_forgets_every_token(key_file: Path, key_set: KeySet, tokens: Tokens) -> None:
    text, other = token(), token(key=signing_key("RS256"))
    await tokens.verify(text)
    await tokens.verify(other)
    write_key_set(key_file, signing_key("RS256"))
    await key_set.load()
    assert tokens.find(text) is None
    assert tokens.find(other) is None
    assert (await tokens.verify(other)).user_id == "alice"
    with pytest.raises(TokenInvalid):
        await tokens.verify(text)


async def test_a_key_that_is_replaced_under_its_kid_forgets_its_tokens(
    key_file: Path, key_set: KeySet, tokens: Tokens
) -> None:
    text = token()
    await tokens.verify(text)
    write_key_set(key_file, signing_key("ES256", 2).renamed(ES256.kid))
    await key_set.load()
    assert tokens.find(text) is None
    with pytest.raises(TokenInvalid):
        await tokens.verify(text)


async def test_the_same_keys_in_a_new_file_forget_nothing(key_file: Path, key_set: KeySet, tokens: Tokens) -> None:
    text = token()
    await tokens.verify(text)
    rewrite(key_file)
    await key_set.load()
    assert tokens.find(text)


async def test_a_token_that_waited_for_new_keys_is_remembered(key_file: Path, clock: Clock, key_set: KeySet) -> None:
    tokens = to_tokens(key_set, clock)
    new = signing_key("ES256", 2)
    text = token(key=new)
    write_key_set(key_file, ES256, new)
    clock.now += 1
    callers = await asyncio.gather(*(tokens.verify(text) for _ in range(3)))
    assert {caller.user_id for caller in callers} == {"alice"}
    assert tokens.find(text)
