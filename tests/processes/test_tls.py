"""Servers with TLS in processes of their own: beyond loopback, with workers, and without secrets in their output."""

import asyncio
import re
import signal
import socket
from pathlib import Path

import psutil
import pytest

from cart_grpc.cli import program as cli
from tests.access.guarded import BEYOND, Files, add, alices_token
from tests.authentication.issuer import signing_key, write_key_set
from tests.processes.harness import LISTENS, Programs
from tests.processes.test_workers import OPERATORS, listening
from tests.waiting import until

pytestmark = pytest.mark.timeout(120)
SERVICES = re.compile(r"^cart-grpc listens for services on (\S+:\d+)$", re.MULTILINE)
HEALTH = re.compile(r"^cart-grpc answers health checks on (\S+:\d+)$", re.MULTILINE)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def variables(files: Files, **changes: str) -> dict[str, str]:
    """The settings of `files`, as the harness takes them."""
    shown = files.settings().shown()
    names = ("tls_cert_file", "tls_key_file", "client_ca_file", "services", "token_keys", "token_issuer")
    ports = ("listen", "service_listen", "admin_listen", "health_listen")
    return {name: shown[f"CART_{name.upper()}"] for name in (*names, *ports, "token_audience")} | changes


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


async def test_a_server_beyond_loopback_starts_if_anyone_may_be_any_user(
    programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = programs.start("serve", listen=BEYOND, allow_anyone_to_be_any_user="true")
    address = (await program.says(LISTENS))[1]
    monkeypatch.setenv("CART_LISTEN", address)
    assert await asyncio.to_thread(cli.main, ["health"]) == 0
    program.send(signal.SIGTERM)
    assert await program.ended(20) == 0


async def test_workers_share_every_port_but_that_of_operators_and_drain(
    files: Files, shared_url: str, programs: Programs
) -> None:
    settings = variables(files, database_url=shared_url, reservation_url="grpc://127.0.0.1:1")
    program = programs.start("serve", "--workers", "2", **settings)
    port = port_of((await program.says(LISTENS))[1])
    service, operator, health = [port_of((await program.says(line))[1]) for line in (SERVICES, OPERATORS, HEALTH)]
    shared = {port, service, health}
    workers = psutil.Process(program.pid).children()
    await until(lambda: sum(listening(worker) >= shared for worker in workers) == 2)
    own = [ports - shared for ports in map(listening, workers) if ports]
    assert sorted(own, key=len) == [set(), {operator}]
    for _ in range(10):
        async with files.open(port) as channel:
            assert await add(channel, alices_token()) > 0
        async with files.open(service, files.web()) as channel:
            assert await add(channel) > 0
    program.send(signal.SIGTERM)
    assert await program.ended(20) == 0
    assert programs.complaints() == []


async def test_keys_and_tokens_are_in_no_output_and_in_no_argument(
    files: Files, shared_url: str, programs: Programs
) -> None:
    key = (files.folder / "server.key").read_text().splitlines()[1]
    tokens = [alices_token(), f"{alices_token()}x", "hunter2"]
    # An issuer that publishes a private key, too.
    private = signing_key("ES256", 2).to_private_jwk()
    write_key_set(files.folder / "keys.json", signing_key("ES256"), private)
    planted = {name: files.write(name, f"planted-{name}\n").path for name in ("token", "password")}
    settings = variables(
        files, database_url=shared_url, database_password_file=planted["password"], log_level="DEBUG",
        reservation_url="grpc://127.0.0.1:1", reservation_token_file=planted["token"],
    )  # fmt: skip
    program = programs.start("serve", "--workers", "2", **settings)
    port = port_of((await program.says(LISTENS))[1])
    for token in tokens:
        async with files.open(port) as channel:
            await channel.unary_unary("/cartgrpc.v1.CartService/GetCart")(
                b"", timeout=20, metadata=(("authorization", f"Bearer {token}"),)
            ).code()
    # Strangers: no TLS, and a handshake that fails.
    with socket.create_connection(("127.0.0.1", port)) as wire:
        wire.sendall(b"hunter2" * 100)
    files.write("server.key", b"hunter2")
    await until(lambda: program.errors.count("CART_TLS_KEY_FILE: it is not a PEM file") == 2)
    arguments = [str(process.cmdline()) for process in psutil.Process(program.pid).children(recursive=True)]
    listed = programs.start("config", **settings)
    assert await listed.ended(20) == 0
    shown = listed.output + listed.errors
    program.send(signal.SIGTERM)
    assert await program.ended(20) == 0
    said = "\n".join((program.output, program.errors, *arguments))
    assert "CART_TLS_CERT_FILE: the certificate is of" in said
    assert f"CART_RESERVATION_TOKEN_FILE={planted['token']}" in shown
    for secret in (key, private["d"], "planted-token", "planted-password", *tokens, tokens[0].split(".")[2]):
        assert secret not in said + shown
