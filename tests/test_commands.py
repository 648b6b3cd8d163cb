"""The commands and their surroundings: terminals, signals, closed pipes, proxies, hostile servers."""

import asyncio
import io
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest
from cartgrpc.v1 import cart_admin_service_pb2 as pb
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2

from cart_grpc.cli import program as cli
from cart_grpc.reservation_api import transports
from cart_grpc.simulator.server import SimulatorConfig, SimulatorServer, make_simulator
from tests.intents import hold
from tests.rpc.conftest import quiet_settings
from tests.service.conftest import Replica, running_replica

HOSTILE = "\x1b[31mred\x07\u202e\u200b\nERROR: forged\x7f"
SHOWN = r"\x1b[31mred\x07\u202e\u200b\nERROR: forged\x7f"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory and an environment without settings."""
    for name in [name for name in os.environ if name.upper().startswith("CART_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A server that accepts connections and never answers."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        server.settimeout(30)
        yield server


@pytest.fixture
async def replica(tmp_path: Path) -> AsyncIterator[Replica]:
    settings = quiet_settings(f"sqlite:///{tmp_path}/cart.db").with_changes(admin_listen="127.0.0.1:0")
    async with running_replica(settings, reconcile=False) as replica:
        yield replica


@pytest.fixture
async def hostile() -> AsyncIterator[str]:
    """The address of a server whose every answer is made to confuse."""
    stats = pb.GetReservationStatsResponse()
    stats.pause.reason = HOSTILE
    answers: dict[str, Message | bytes] = {
        "Check": health_pb2.HealthCheckResponse(status=99),
        "ListReservations": pb.ListReservationsResponse(reservations=[_hostile_record()]),
        "GetReservationStats": stats,
        "GetReservation": b"\xff\xff",
    }

    class Handler(grpc.GenericRpcHandler):
        def service(self, details: Any) -> Any:
            async def answer(request: bytes, context: Any) -> bytes:
                method = details.method.rpartition("/")[2]
                if method == "ListReservations" and pb.ListReservationsRequest.FromString(request).page_size == 7:
                    # Empty pages without end.
                    return pb.ListReservationsResponse(next_page_token="again").SerializeToString()
                found = answers.get(method)
                if isinstance(found, Message):
                    return found.SerializeToString()
                if found is None:
                    await context.abort(grpc.StatusCode.INTERNAL, HOSTILE)
                return found or b""

            return grpc.unary_unary_rpc_method_handler(answer)

    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(0)


def _hostile_record() -> pb.ReservationRecord:
    record = pb.ReservationRecord(
        name=f"reservations/{HOSTILE}",
        sku=HOSTILE,
        item=HOSTILE,
        last_error=HOSTILE,
        state=99,  # type: ignore[arg-type]
        shown_state=98,  # type: ignore[arg-type]
        disposition=97,  # type: ignore[arg-type]
    )
    record.next_attempt_time.seconds = 2**62
    return record


async def run(*arguments: str) -> int:
    """Run a command in a thread, because it blocks and this loop's server must answer."""
    return await asyncio.to_thread(cli.main, list(arguments))


def start(*arguments: str, **options: Any) -> "subprocess.Popen[str]":
    """Start `python -m cart_grpc`, as a user does."""
    environ = {"PATH": os.defpath, **options.pop("environ", {})}
    standard = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen([sys.executable, "-m", "cart_grpc", *arguments], env=environ, text=True, **standard)


async def test_a_hostile_server_controls_neither_the_terminal_nor_the_lines_of_the_output(
    hostile: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async def say(*arguments: str) -> tuple[int, str, str]:
        status = await run("reservations", *arguments, "--address", hostile)
        return status, *capsys.readouterr()

    status, out, err = await say("list")
    assert (status, err, len(out.splitlines())) == (0, "", 2)
    assert out.count(SHOWN) == 4
    assert out.splitlines()[1].split()[2:5] == ["99", "98", "97"]
    assert len((await say("list", "--limit", "7"))[1].splitlines()) == 1
    status, out, err = await say("stats")
    assert (status, err, out.splitlines()[-1]) == (0, "", f"PAUSED since 1970-01-01T00:00:00Z: {SHOWN}")
    status, out, err = await say("stats", "--json")
    assert (status, err, out[:-1].isprintable()) == (0, "", True)
    assert json.loads(out)["pause"]["reason"] == HOSTILE
    status, out, err = await say("list", "--json")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(f"cart-grpc: {hostile}: its answer cannot be shown: Failed to serialize next_attempt_time")
    assert await say("show", "x") == (1, "", f"cart-grpc: {hostile}: INTERNAL: Exception deserializing response!\n")
    shown = SHOWN.replace(r"\n", " ")
    assert await say("resume") == (1, "", f"cart-grpc: {hostile}: INTERNAL: {shown}\n")
    assert await run("health", hostile) == 1
    assert capsys.readouterr() == ("UNKNOWN (99)\n", "")


async def test_a_sku_that_the_terminal_cannot_show_is_escaped_and_columns_stay_aligned(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    for sku in ("お茶", "tea\u200b", "beans"):
        await replica.add(sku)
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="latin-1"))
    assert await run("reservations", "list", "--address", f"127.0.0.1:{replica.admin_port}") == 0
    header, *lines = written.getvalue().decode("latin-1").splitlines()
    start = header.index("SKU")
    assert [line[start:].split()[0] for line in lines] == [r"\u304a\u8336", r"tea\u200b", "beans"]
    assert {line[header.index("TRIES") - 1 :][:3] for line in lines} == {" 0 "}


@pytest.mark.parametrize(
    "arguments",
    [
        ["health", "127.0.0.1:{port}"],
        ["reservations", "list", "--address", "127.0.0.1:{port}"],
        ["reservations", "after-restore"],
    ],
    ids=["health", "list", "after-restore"],
)
def test_ctrl_c_ends_a_command_that_waits_with_130_and_says_nothing(
    arguments: list[str], silent: socket.socket
) -> None:
    port = silent.getsockname()[1]
    environ = {"CART_DATABASE_URL": f"postgresql://u@127.0.0.1:{port}/d"}
    command = start(*(argument.format(port=port) for argument in arguments), environ=environ)
    with silent.accept()[0]:
        command.send_signal(signal.SIGINT)
        assert command.communicate(timeout=30) == ("", "")
    assert command.returncode == 130


@pytest.mark.parametrize("argument", ["config", "--help"])
def test_a_command_whose_reader_has_gone_ends_silently(argument: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as output:
        command = start(argument, stdout=output)
    assert command.communicate(timeout=30)[1] == ""
    assert command.returncode == 141


def test_a_command_that_cannot_write_its_output_says_so() -> None:
    with Path("/dev/full").open("wb") as full:
        command = start("config", stdout=full, environ={"PYTHONUNBUFFERED": "1"})
    said = "cart-grpc: the output cannot be written: No space left on device\n"
    assert command.communicate(timeout=30)[1] == said
    assert command.returncode == 1


@pytest.fixture
def proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of a proxy that does not work, for programs that read web pages."""
    for name in ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)


async def test_commands_for_operators_use_no_proxy(
    proxies: None, replica: Replica, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await run("health", f"127.0.0.1:{replica.port}") == 0
    assert await run("reservations", "stats", "--address", f"127.0.0.1:{replica.admin_port}") == 0
    assert capsys.readouterr().err == ""


async def test_no_client_of_the_reservation_api_uses_a_proxy(proxies: None) -> None:
    server = SimulatorServer(make_simulator(SimulatorConfig(latency_us=0)))
    ports = await server.start("127.0.0.1:0", "127.0.0.1:0")
    try:
        for url in (f"grpc://127.0.0.1:{ports.grpc}", f"http://127.0.0.1:{ports.http}"):
            api = transports.connect(url)
            intent = hold()
            decision = await api.apply(intent, timeout=5)
            assert decision.granted_quantity == intent.quantity  # type: ignore[union-attr]
            await api.close()
    finally:
        await server.stop(0)
