"""The key set stays up to date: rotation, failures, and how often it is loaded."""

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cart_grpc.authentication import key_set as key_set_module
from cart_grpc.authentication import key_sources
from cart_grpc.authentication.key_set import KeySet
from cart_grpc.authentication.key_sources import MAX_BYTES, FileSource, UrlSource, key_source
from cart_grpc.authentication.refusals import Fault, KeysUnavailable, TokenInvalid
from tests.authentication.conftest import ALGORITHMS, Clock
from tests.authentication.issuer import signing_key, to_key_set, write_key_set
from tests.authentication.key_server import KeyServer

OLD, NEW = signing_key("ES256"), signing_key("ES256", 2)


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


def to_key_set_of(server: KeyServer, clock: Clock) -> KeySet:
    return KeySet(UrlSource(server.url, server.trust), ALGORITHMS, clock=clock)


async def knows(keys: KeySet, kid: str) -> bool:
    try:
        return (await keys.get(kid)).kid == kid
    except TokenInvalid:
        return False


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


def break_status(server: KeyServer) -> None:
    server.status = 503


def break_json(server: KeyServer) -> None:
    server.body = to_key_set(NEW)[:-1]


def send_page(server: KeyServer) -> None:
    server.body, server.headers = "<html>", {"Content-Type": "text/html"}


def send_too_much(server: KeyServer) -> None:
    server.body = to_key_set(NEW) + " " * MAX_BYTES


def redirect_to_http(server: KeyServer) -> None:
    server.status, server.headers = 302, {"Location": server.url.replace("https", "http")}


def redirect_to_itself(server: KeyServer) -> None:
    server.status, server.headers = 307, {"Location": server.url}


def compress(server: KeyServer) -> None:
    server.headers = {"Content-Encoding": "gzip"}
    server.body = b"\x1f\x8b\x08\x00"


@pytest.mark.parametrize(
    "break_server",
    [break_status, break_json, send_page, send_too_much, redirect_to_http, redirect_to_itself, compress],
)
async def test_a_failed_load_keeps_the_keys_and_is_logged_once_and_so_is_its_end(
    break_server: Callable[[KeyServer], None],
    keys: KeySet,
    key_server: KeyServer,
    clock: Clock,
    lines: Callable[[], list[str]],
) -> None:
    break_server(key_server)
    generation = keys.generation
    for _ in range(3):
        await keys.load()
    assert key_server.requests == 4
    assert await knows(keys, OLD.kid)
    assert keys.generation == generation
    clock.now += 60
    key_server.reset(to_key_set(NEW))
    for _ in range(2):
        await keys.load()
    assert await knows(keys, NEW.kid)
    failed, ended = lines()
    assert failed.startswith("CART_TOKEN_KEYS cannot be loaded, the keys of the last load are kept: ")
    assert ended == "CART_TOKEN_KEYS is loaded again after 60.0 s and 3 failures"


async def test_a_load_that_takes_too_long_fails(
    keys: KeySet, key_server: KeyServer, lines: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_sources, "FETCH_SECONDS", 0.05)
    key_server.hold()
    await keys.load()
    assert await knows(keys, OLD.kid)
    assert "no answer within 0.05 s" in lines()[0]


async def test_an_issuer_without_a_trusted_certificate_is_not_believed(key_server: KeyServer, clock: Clock) -> None:
    keys = KeySet(UrlSource(key_server.url), ALGORITHMS, clock=clock)
    with pytest.raises(KeysUnavailable):
        await keys.get(OLD.kid)
    assert key_server.requests == 0


async def test_a_certificate_of_another_host_is_not_believed(key_server: KeyServer, clock: Clock) -> None:
    url = key_server.url.replace("localhost", "127.0.0.1")
    keys = KeySet(UrlSource(url, key_server.trust), ALGORITHMS, clock=clock)
    with pytest.raises(KeysUnavailable):
        await keys.get(OLD.kid)
    assert key_server.requests == 0


async def test_the_log_has_no_part_of_the_url(
    caplog: pytest.LogCaptureFixture, clock: Clock, key_server: KeyServer
) -> None:
    caplog.set_level(logging.DEBUG)
    for url in (
        key_server.url.replace("localhost", "user:hunter2@localhost"),
        key_server.url + "?key=hunter2",
        "https://hunter2:99999/",
        "https://[hunter2/",
    ):
        await KeySet(UrlSource(url, key_server.trust), ALGORITHMS, clock=clock).load()
        await KeySet(UrlSource(url), ALGORITHMS, clock=clock).load()
    assert "hunter2" not in caplog.text


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
    async with to_key_set_of(key_server, clock):
        await key_server.asked.wait()
    assert not [task for task in asyncio.all_tasks() if "token-keys" in task.get_name()]


def make_directory(file: Path) -> None:
    file.mkdir()


def make_pipe(file: Path) -> None:
    os.mkfifo(file)


def make_endless(file: Path) -> None:
    file.symlink_to("/dev/zero")


def make_long(file: Path) -> None:
    file.write_bytes(b" " * (MAX_BYTES + 1))


def make_half(file: Path) -> None:
    file.write_text(to_key_set(NEW)[:-1])


def make_none(file: Path) -> None:
    """The file is missing."""


@pytest.mark.parametrize("make", [make_directory, make_pipe, make_endless, make_long, make_half, make_none])
async def test_what_is_in_the_place_of_the_file_keeps_the_keys(
    make: Callable[[Path], None], tmp_path: Path, clock: Clock, lines: Callable[[], list[str]]
) -> None:
    file = write_key_set(tmp_path / "keys.json", OLD)
    keys = KeySet(FileSource(file), ALGORITHMS, clock=clock)
    await keys.load()
    file.unlink()
    make(file)
    descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(20):
        await keys.load()
    assert len(os.listdir("/proc/self/fd")) == descriptors  # noqa: PTH208
    assert await knows(keys, OLD.kid)
    assert len(lines()) == 1


@pytest.mark.parametrize("form", ["{path}", "file://{path}", "file://localhost{path}"])
async def test_a_file_is_a_path_or_a_url(form: str, tmp_path: Path) -> None:
    file = write_key_set(tmp_path / "the keys.json", OLD)
    path = str(file).replace(" ", "%20") if form.startswith("file") else str(file)
    assert await key_source(form.format(path=path)).read() == to_key_set(OLD).encode()
