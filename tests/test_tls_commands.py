"""Commands that connect by TLS: `probe`, those for operators, and `cart`."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from cartgrpc.v1 import cart_admin_service_pb2 as pb
from cartgrpc.v1 import cart_admin_service_pb2_grpc

from cart_grpc.cli import program as cli
from cart_grpc.simulator.access import Access
from cart_grpc.simulator.server import SimulatorConfig, SimulatorServer, make_simulator
from tests.client.scripted import Scripted, added, scripted_server
from tests.pem import PemFolder, issue, new_authority

SECRET = "hunter2"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory and an environment without settings."""
    for name in [name for name in os.environ if name.upper().startswith(("CART_", "CARTGRPC_"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def authorities() -> tuple[trustme.CA, trustme.CA]:
    return new_authority(), new_authority()


@pytest.fixture
def files(folder: Path, authorities: tuple[trustme.CA, trustme.CA]) -> PemFolder:
    """The files of a server, `server`, of an operator, `client`, of a stranger, and of two authorities."""
    own, other = authorities
    files = PemFolder(folder)
    files.write_authorities("ca.pem", own)
    files.write_authorities("other.pem", other)
    files.write_identity("server", issue(own))
    files.write_identity("client", issue(own, "operator.example"))
    files.write_identity("stranger", issue(other, "operator.example"))
    return files


def credentials(files: PemFolder, *, mutual: bool) -> grpc.ServerCredentials:
    """The credentials of a server; `mutual`: its callers must show a certificate."""
    key, chain, authority = (files.folder / name for name in ("server.key", "server.pem", "ca.pem"))
    return grpc.ssl_server_credentials(
        [(key.read_bytes(), chain.read_bytes())],
        authority.read_bytes() if mutual else None,
        require_client_auth=mutual,
    )


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command. Returns its exit status, its output and its errors."""

    def run(*arguments: str) -> tuple[int, str, str]:
        status = cli.main(list(arguments))
        said = capsys.readouterr()
        assert SECRET not in said.out + said.err
        return status, said.out, said.err

    return run


def tell_stats(request: Any, context: Any) -> Any:
    """Answer `reservations stats`."""
    return pb.GetReservationStatsResponse(due_count=7)


@contextmanager
def admin_server(files: PemFolder) -> Iterator[str]:
    """A port for operators as it is beyond loopback, and its address."""
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        kind: Any = cart_admin_service_pb2_grpc.CartAdminServiceServicer
        servicer = kind()
        servicer.GetReservationStats = tell_stats
        cart_admin_service_pb2_grpc.add_CartAdminServiceServicer_to_server(servicer, server)
        port = server.add_secure_port("127.0.0.1:0", credentials(files, mutual=True))
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.stop(0).wait()


IDENTITY = ("--ca-file", "ca.pem", "--cert-file", "client.pem", "--key-file", "client.key")


def test_an_operator_shows_a_certificate(files: PemFolder, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with admin_server(files) as address:
        assert run("reservations", "stats", "--address", address, *IDENTITY)[:2] == (
            0,
            "STATE  INTENT  COUNT  OLDEST\ndue now: 7, the oldest since 1970-01-01T00:00:00Z\n",
        )
        for name, file in (("CLIENT_CA", "ca.pem"), ("TLS_CERT", "client.pem"), ("TLS_KEY", "client.key")):
            monkeypatch.setenv(f"CART_{name}_FILE", file)
        # The option makes it use TLS to a loopback address, the settings have the rest.
        assert run("reservations", "stats", "--address", address, "--ca-file", "ca.pem")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        ((), "the server closes new connections: it may require TLS, or a client certificate that it trusts"),
        (("--ca-file", "ca.pem", "--cert-file", "stranger.pem", "--key-file", "stranger.key"),
         "the server closes new connections: it may require TLS, or a client certificate that it trusts"),
        (("--ca-file", "other.pem", "--cert-file", "client.pem", "--key-file", "client.key"),
         "no authority that is trusted here has signed the server's certificate"),
    ],
)  # fmt: skip
def test_an_operator_who_is_refused_is_told_the_cause_in_one_line(
    files: PemFolder, run: Run, arguments: tuple[str, ...], cause: str
) -> None:
    with admin_server(files) as address:
        said = run("reservations", "stats", "--address", address, *arguments)
    assert said == (1, "", f"cart-grpc: {address}: UNAVAILABLE: {cause}\n")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--address", "192.0.2.1:1"), "192.0.2.1:1 is beyond loopback, so operators need a certificate: set"),
        (("--address", "127.0.0.1:1", "--cert-file", "client.pem"), "--cert-file: it needs --key-file, too"),
        (("--address", "127.0.0.1:1", *IDENTITY[2:], "--ca-file", "none.pem"),
         "--ca-file: the file cannot be read: No such file or directory"),
        (("--address", "127.0.0.1:1", "--cert-file", "client.pem", "--key-file", "stranger.key"),
         "--cert-file: it must be a PEM file with a certificate that fits --key-file"),
    ],
)  # fmt: skip
def test_an_operators_files_are_checked_before_the_call(
    files: PemFolder, run: Run, arguments: tuple[str, ...], line: str
) -> None:
    status, out, err = run("checkouts", "list", *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"cart-grpc: {line}")


@asynccontextmanager
async def closed_simulator(files: PemFolder, authority: trustme.CA) -> AsyncIterator[dict[str, str]]:
    """A simulator that requires TLS, a certificate and a token, and the settings for it."""
    certificate, key = files.write_identity("api", issue(authority))
    tokens = files.write("api-tokens", SECRET)
    access = Access(certificate, key, files.write("api-clients.pem", (files.folder / "ca.pem").read_bytes()), tokens)
    server = SimulatorServer(make_simulator(SimulatorConfig(latency_us=0)), access)
    ports = await server.start("127.0.0.1:0", "127.0.0.1:0")
    try:
        https = f"https://127.0.0.1:{ports.http}"
        yield {"grpc": f"grpcs://127.0.0.1:{ports.grpc}", "http": https, "basic": f"basic+{https}/basic"}
    finally:
        await server.stop(0)


async def probe(folder: Path, url: str, **settings: str) -> tuple[int | None, str, str]:
    """Run the installed command. Returns its exit status, its output and its errors."""
    environment = {f"CART_RESERVATION_{name.upper()}_FILE": value for name, value in settings.items()}
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("cart-grpc"), "probe", url, "--ttl", "0",
        cwd=folder, env={"PATH": os.defpath, **environment},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = (each.decode() for each in await process.communicate())
    assert SECRET not in out + err
    return process.returncode, out, err


@pytest.mark.parametrize("transport", ["grpc", "http", "basic"])
async def test_a_probe_uses_the_files_in_the_settings(
    files: PemFolder, authorities: tuple[trustme.CA, trustme.CA], transport: str
) -> None:
    files.write("token", f"{SECRET}\n")
    identity = {"ca": "ca.pem", "cert": "client.pem", "key": "client.key"}
    async with closed_simulator(files, authorities[0]) as urls:
        status, out, err = await probe(files.folder, urls[transport], **identity, token="token")
        assert (status, err) == (0, "")
        assert ": PASSED: no tested rule is broken" in out
        status, out, err = await probe(files.folder, urls[transport], **identity)
        assert (status, out, err.count("\n")) == (2, "", 1)
        code = "UNAUTHENTICATED: the call" if transport == "grpc" else "HTTP_401: "
        assert err.startswith(f"cart-grpc: no Reservation API answers at {urls[transport]}: {code}")
        status, out, err = await probe(files.folder, urls[transport], ca="other.pem", token="token")
        assert (status, out) == (2, "")
        why = "UNAVAILABLE: no authority that is trusted here has signed the server's certificate"
        assert err == f"cart-grpc: no Reservation API answers at {urls[transport]}: {why}\n"


@pytest.mark.parametrize(
    ("url", "settings", "line"),
    [
        ("grpc://127.0.0.1:1", {"ca": "ca.pem"}, "CART_RESERVATION_CA_FILE needs a URL with TLS: grpcs://"),
        ("http://192.0.2.1", {"token": "token"}, "CART_RESERVATION_TOKEN_FILE needs a URL with TLS: grpcs://"),
        ("https://127.0.0.1:1", {"cert": "client.pem"}, "CART_RESERVATION_CERT_FILE: it needs CART_RESERVATION_KEY"),
        ("https://127.0.0.1:1", {"ca": "none"}, "CART_RESERVATION_CA_FILE: the file cannot be read: No such file"),
        ("grpcs://127.0.0.1:1", {"token": "server.key"}, "CART_RESERVATION_TOKEN_FILE: the file contains a control"),
    ],
)  # fmt: skip
def test_wrong_files_for_the_reservation_api_end_a_start_in_one_line(
    files: PemFolder, monkeypatch: pytest.MonkeyPatch, run: Run, url: str, settings: dict[str, str], line: str
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(f"CART_RESERVATION_{name.upper()}_FILE", value)
    for command in (("probe", url), ("serve",)):
        monkeypatch.setenv("CART_RESERVATION_URL", url)
        status, out, err = run(*command)
        assert (status, out, err.count("\n")) == (2, "", 1), err
        assert line in err


@contextmanager
def cart_server(files: PemFolder, *, mutual: bool = False) -> Iterator[Scripted]:
    """A port for callers with TLS. It answers AddItem."""
    with scripted_server(credentials(files, mutual=mutual)) as scripted:
        scripted.address = scripted.address.replace("localhost", "127.0.0.1")
        scripted.script = [added() for _ in range(3)]
        yield scripted


ADD = ("cart", "add", "alice", "beans", "--timeout", "5s")


def test_a_caller_uses_tls_and_sends_the_token_in_a_file(
    files: PemFolder, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.write("token", f"{SECRET}\r\n")
    with cart_server(files) as server:
        status, _, err = run(*ADD, "--address", server.address, "--ca-file", "ca.pem", "--token-file", "token")
        assert (status, err) == (0, "")
        for name, value in (("ADDRESS", server.address), ("CA_FILE", "ca.pem"), ("TOKEN_FILE", "token")):
            monkeypatch.setenv(f"CARTGRPC_{name}", value)
        assert run(*ADD)[0] == 0
        assert [attempt.authorization for attempt in server.attempts] == [f"Bearer {SECRET}"] * 2


def test_a_caller_shows_a_certificate(files: PemFolder, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with cart_server(files, mutual=True) as server:
        assert run(*ADD, "--address", server.address, *IDENTITY)[0] == 0
        monkeypatch.setenv("CARTGRPC_CERT_FILE", "client.pem")
        monkeypatch.setenv("CARTGRPC_KEY_FILE", "client.key")
        assert run(*ADD, "--address", server.address, "--ca-file", "ca.pem")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        ((), "the server closes new connections: it may require TLS, or a client certificate that it trusts"),
        (("--tls",), "no authority that is trusted here has signed the server's certificate"),
        (("--ca-file", "other.pem"), "no authority that is trusted here has signed the server's certificate"),
    ],
)
def test_a_caller_whose_handshake_fails_is_told_the_cause(
    files: PemFolder, run: Run, arguments: tuple[str, ...], cause: str
) -> None:
    with cart_server(files) as server:
        shown = run("cart", "show", "alice", "--timeout", "2s", "--address", server.address, *arguments)
    assert shown == (1, "", f"cart-grpc: no connection to {server.address}: {cause}\n")


def test_tls_to_a_port_without_tls_is_explained(run: Run, folder: Path) -> None:
    with scripted_server() as server:
        address = server.address
        shown = run("cart", "show", "alice", "--timeout", "2s", "--address", address, "--tls")
    assert shown == (1, "", f"cart-grpc: no connection to {address}: the server does not speak TLS\n")


@pytest.mark.parametrize(
    ("arguments", "variables", "line"),
    [
        (("--token-file", "none"), {}, "--token-file: the file cannot be read: No such file or directory"),
        (("--token-file", "two"), {}, "--token-file: the file contains a control character"),
        ((), {"CARTGRPC_TOKEN_FILE": "none"}, "CARTGRPC_TOKEN_FILE: the file cannot be read: No such file"),
        (("--token-file", "one", "--address", "192.0.2.1:1"), {}, "--token-file: without TLS, a token may go to"),
        (("--key-file", "client.key"), {}, "--key-file: it needs --cert-file, too"),
        (("--ca-file", "client.key"), {}, "--ca-file: the file has no certificate in PEM form"),
        ((), {"CARTGRPC_TLS": "maybe"}, "CARTGRPC_TLS must be true or false"),
    ],
)  # fmt: skip
def test_a_caller_s_files_are_checked_before_the_call(
    files: PemFolder,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    variables: dict[str, str],
    line: str,
) -> None:
    files.write("one", SECRET)
    files.write("two", f"{SECRET}\n{SECRET}\n")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    status, out, err = run("cart", "show", "alice", *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"cart-grpc: {line}")
