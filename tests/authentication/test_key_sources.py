"""Sources of key sets that fail, hang or send something else: the keys of the last load are kept."""

import gzip
import logging
import os
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from cart_grpc.authentication import key_sources
from cart_grpc.authentication.key_set import KeySet
from cart_grpc.authentication.key_sources import MAX_BYTES, FileSource, UrlSource, key_source
from cart_grpc.authentication.refusals import KeysUnavailable
from tests.authentication.conftest import ALGORITHMS, Clock, knows
from tests.authentication.issuer import signing_key, to_key_set, write_key_set
from tests.authentication.key_server import KeyServer

OLD, NEW = signing_key("ES256"), signing_key("ES256", 2)


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
    server.headers, server.body = {"Content-Encoding": "gzip"}, gzip.compress(to_key_set(NEW).encode())


def send_without_end(server: KeyServer) -> None:
    server.is_endless = True


@pytest.mark.parametrize(
    ("break_server", "cause"),
    [
        (break_status, "HTTP status 503 instead of 200"),
        (redirect_to_http, "HTTP status 302 instead of 200"),
        (redirect_to_itself, "HTTP status 307 instead of 200"),
        (send_too_much, "it is longer than 256 KiB"),
        (send_without_end, "it is longer than 256 KiB"),
        (break_json, "it is not a JSON Web Key Set: a JSON object with the array `keys`"),
        (send_page, "it is not a JSON Web Key Set: a JSON object with the array `keys`"),
        (compress, "it is not a JSON Web Key Set: a JSON object with the array `keys`"),
    ],
)
async def test_a_failed_load_keeps_the_keys_and_is_logged_once_and_so_is_its_end(
    break_server: Callable[[KeyServer], None],
    cause: str,
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
    assert failed == f"CART_TOKEN_KEYS cannot be loaded, the keys of the last load are kept: {cause}"
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


@pytest.mark.parametrize(
    ("make", "cause"),
    [
        (make_directory, "Is a directory"),
        (make_pipe, "it is not a file"),
        (make_endless, "it is not a file"),
        (make_long, "it is longer than 256 KiB"),
        (make_half, "it is not a JSON Web Key Set"),
        (make_none, "No such file or directory"),
    ],
)
async def test_what_is_in_the_place_of_the_file_keeps_the_keys(
    make: Callable[[Path], None], cause: str, tmp_path: Path, clock: Clock, lines: Callable[[], list[str]]
) -> None:
    file = write_key_set(tmp_path / "keys.json", OLD)
    keys = KeySet(FileSource(file), ALGORITHMS, clock=clock)
    await keys.load()
    file.unlink()
    make(file)
    descriptors = psutil.Process().num_fds()
    for _ in range(20):
        await keys.load()
    assert len(os.listdir("/proc/self/fd")) <= descriptors  # noqa: PTH208
    assert await knows(keys, OLD.kid)
    (line,) = lines()
    assert cause in line


@pytest.mark.parametrize("form", ["{path}", "file://{path}", "file://localhost{path}"])
async def test_a_file_is_a_path_or_a_url(form: str, tmp_path: Path) -> None:
    file = write_key_set(tmp_path / "the keys.json", OLD)
    path = str(file).replace(" ", "%20") if form.startswith("file") else str(file)
    assert await key_source(form.format(path=path)).read() == to_key_set(OLD).encode()
