"""The key set stays up to date: rotation, failures, and how often it is loaded."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from cart_grpc.authentication import key_set as key_set_module
from cart_grpc.authentication.key_set import KeySet
from cart_grpc.authentication.key_sources import FileSource
from cart_grpc.authentication.refusals import Fault, KeysUnavailable, TokenInvalid
from tests.authentication.conftest import ALGORITHMS, Clock, knows, to_key_set_of
from tests.authentication.issuer import signing_key, to_key_set, write_key_set
from tests.authentication.key_server import KeyServer

OLD, NEW = signing_key("ES256"), signing_key("ES256", 2)


async def test_a_known_key_causes_no_load(keys: KeySet, key_server: KeyServer, clock: Clock) -> None:
    for _ in range(5):
        clock.now += 1000
        assert await knows(keys, OLD.kid)
    assert key_server.requests == 1


async def test_a_new_key_is_found_by_one_load_for_all_calls_that_wait(
    keys: KeySet, key_server: KeyServer, clock: Clock
) -> None:
    key_server.body = to_key_set(OLD, NEW)
    clock.now += 5
    assert all(await asyncio.gather(*(knows(keys, NEW.kid) for _ in range(50))))
    assert key_server.requests == 2


async def test_a_withdrawn_key_is_no_longer_known(keys: KeySet, key_server: KeyServer) -> None:
    generation = keys.generation
    key_server.body = to_key_set(NEW)
    await keys.load()
    assert not await knows(keys, OLD.kid)
    assert await knows(keys, NEW.kid)
    assert keys.generation != generation


async def test_a_flood_of_unknown_kids_causes_few_loads(keys: KeySet, key_server: KeyServer, clock: Clock) -> None:
    for number in range(1000):
        clock.now += 0.02
        assert not await knows(keys, f"unknown-{number}")
    assert key_server.requests <= 1 + 1000 * 0.02 / 5


async def test_a_flood_of_unknown_kids_does_not_wait_for_a_slow_issuer(
    keys: KeySet, key_server: KeyServer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_set_module, "MAX_WAITING", 3)
    clock.now += 5
    key_server.hold()
    waiting = [asyncio.create_task(knows(keys, f"unknown-{number}")) for number in range(3)]
    await key_server.asked.wait()
    with pytest.raises(KeysUnavailable):
        await keys.get("unknown")
    assert await knows(keys, OLD.kid)
    key_server.answer()
    assert await asyncio.gather(*waiting) == [False] * 3
    assert key_server.requests == 2
    assert not await knows(keys, "unknown")


async def test_a_call_that_stops_waiting_does_not_stop_the_others(
    keys: KeySet, key_server: KeyServer, clock: Clock
) -> None:
    clock.now += 5
    key_server.body = to_key_set(OLD, NEW)
    key_server.hold()
    waiting = [asyncio.create_task(knows(keys, NEW.kid)) for _ in range(2)]
    await key_server.asked.wait()
    waiting[0].cancel()
    await asyncio.wait(waiting[:1])
    key_server.answer()
    assert await waiting[1]


async def test_a_token_without_kid_causes_no_load_and_needs_a_set_of_one_key(
    keys: KeySet, key_server: KeyServer, clock: Clock
) -> None:
    clock.now += 1000
    assert (await keys.get(None)).kid == OLD.kid
    for body in (to_key_set(OLD, NEW), to_key_set(OLD.to_jwk(kid=None), NEW.to_jwk(kid=None))):
        key_server.body = body
        await keys.load()
        clock.now += 1000
        requests = key_server.requests
        with pytest.raises(TokenInvalid) as caught:
            await keys.get(None)
        assert caught.value.fault == Fault.KEY_ID_MISSING
        assert key_server.requests == requests


async def test_without_any_keys_calls_are_refused_until_the_first_load(key_server: KeyServer, clock: Clock) -> None:
    keys = to_key_set_of(key_server, clock)
    key_server.status = 500
    for kid in (OLD.kid, None, "unknown"):
        with pytest.raises(KeysUnavailable):
            await keys.get(kid)
    assert key_server.requests == 1
    key_server.status = 200
    clock.now += 5
    assert await knows(keys, OLD.kid)


async def test_an_unknown_kid_is_no_fault_of_the_token_while_loads_fail(
    keys: KeySet, key_server: KeyServer, clock: Clock
) -> None:
    key_server.status = 500
    clock.now += 5
    with pytest.raises(KeysUnavailable):
        await keys.get(NEW.kid)
    assert await knows(keys, OLD.kid)


async def test_an_issuer_can_withdraw_all_its_keys(
    keys: KeySet, key_server: KeyServer, lines: Callable[[], list[str]]
) -> None:
    key_server.body = to_key_set()
    await keys.load()
    with pytest.raises(KeysUnavailable):
        await keys.get(OLD.kid)
    assert lines() == ["CART_TOKEN_KEYS: the set has no usable key; calls with tokens are refused"]


async def test_the_pauses_after_failures_double_up_to_a_minute(keys: KeySet, key_server: KeyServer) -> None:
    assert keys.pause_seconds == 300
    key_server.status = 500
    pauses = []
    for _ in range(8):
        await keys.load()
        pauses.append(keys.pause_seconds)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]


async def test_in_the_background_a_changed_file_is_noticed(tmp_path: Path) -> None:
    file = write_key_set(tmp_path / "keys.json", OLD)
    source = FileSource(file)
    source.refresh_seconds, source.gap_seconds = 0.01, 1000
    async with KeySet(source, ALGORITHMS) as keys:
        assert await knows(keys, OLD.kid)
        # As Kubernetes does it: another file takes the name.
        write_key_set(tmp_path / "new.json", NEW).rename(file)
        while not await knows(keys, NEW.kid):
            await asyncio.sleep(0.01)
        assert not await knows(keys, OLD.kid)


async def test_the_end_of_the_background_does_not_wait_for_a_slow_issuer(key_server: KeyServer, clock: Clock) -> None:
    key_server.hold()
    before = asyncio.all_tasks()
    async with to_key_set_of(key_server, clock):
        await key_server.asked.wait()
    assert not [task for task in asyncio.all_tasks() - before if "token-keys" in task.get_name()]
