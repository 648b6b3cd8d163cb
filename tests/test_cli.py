"""The command line: the output and exit status of each subcommand, and the error for each mistake."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from cart_grpc import process, terminal
from cart_grpc.cli import program as cli
from cart_grpc.cli import server as server_cli
from cart_grpc.rpc.methods import CART_SERVICE as SERVICE
from cart_grpc.settings import Settings
from cart_grpc.simulator.server import SimulatorConfig, SimulatorServer, make_simulator
from cart_grpc.store import revisions
from tests.databases import shards_of
from tests.postgres import PostgresServer

# Lines that gRPC's core writes to standard error.
CORE_LOG = re.compile(r"^([EWI]\d{4} |WARNING: All log messages before absl)")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory and an environment without settings."""
    for name in [name for name in os.environ if name.upper().startswith("CART_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_importing_the_command_line_does_not_import_slow_packages() -> None:
    script = "import sys, cart_grpc.cli.service_commands; print({'alembic', 'aiohttp'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", script], text=True) == "set()\n"


def test_importing_the_operators_commands_imports_neither_a_server_nor_a_database() -> None:
    """A container runs `cart-grpc health` every few seconds."""
    script = (
        "import sys, cart_grpc.cli.operator_commands; "
        "print({'sqlalchemy', 'asyncpg', 'uvloop', 'cart_grpc.app'} & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", script], text=True) == "set()\n"


Refuse = Callable[..., str]


@pytest.fixture
def refuse(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Refuse:
    """Run a command that must end with status 2 and one line on standard error. Returns that line."""

    def run(*arguments: str, **environ: str) -> str:
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        status = cli.main(list(arguments))
        said = capsys.readouterr()
        assert status == 2, said
        assert said.out == ""
        lines = said.err.splitlines()
        assert len(lines) == 1, said.err
        assert lines[0].startswith("cart-grpc: ")
        assert "hunter2" not in lines[0]
        assert "<class" not in lines[0]
        return lines[0].removeprefix("cart-grpc: ")

    return run


@pytest.fixture
def empty_postgres(postgres: PostgresServer, request: pytest.FixtureRequest) -> str:
    """A database that was never migrated."""
    return postgres.create_database(f"empty_{abs(hash(request.node.nodeid))}")


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port that another socket listens on."""
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        yield taken.getsockname()[1]


@pytest.fixture
def stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that run until a signal get it as soon as they have started."""
    stopped = asyncio.Event()

    def say(*lines: str) -> None:
        terminal.say(*lines)
        if lines[0].startswith("cart-grpc "):
            stopped.set()

    def stop_signal(message: str = "") -> asyncio.Event:
        return stopped

    monkeypatch.setattr(server_cli, "say", say)
    monkeypatch.setattr(process, "stop_signal", stop_signal)
    monkeypatch.setenv("CART_LAME_DUCK", "0")


COMMANDS = ("serve", "reconcile", "migrate", "simulate", "probe", "dev", "config", "health")


@pytest.mark.parametrize("command", COMMANDS)
def test_an_invalid_setting_ends_every_command(command: str, refuse: Refuse) -> None:
    assert refuse(command, CART_LISTEN="nonsense").startswith("CART_LISTEN: must be HOST:PORT")


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_setting_ends_every_command(command: str, refuse: Refuse) -> None:
    assert refuse(command, CART_LISTN="hunter2").endswith("did you mean CART_LISTEN?")


def test_an_invalid_setting_in_dotenv_is_refused(folder: Path, refuse: Refuse) -> None:
    (folder / ".env").write_text("CART_DATABASE_URL=mysql://u:hunter2@h/d\n")
    assert refuse("config") == (
        "CART_DATABASE_URL: must be sqlite:///FILE or postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
    )


def test_a_dotenv_that_is_not_utf_8_is_refused(folder: Path, refuse: Refuse) -> None:
    (folder / ".env").write_bytes(b"\xff\xfe")
    assert ".env" in refuse("config")


def test_config_prints_every_setting_and_hides_passwords(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CART_DATABASE_URL", "postgresql://cart:hunter2@db:5432/cart")
    monkeypatch.setenv("CART_LISTEN", "h:1")
    assert cli.main(["config"]) == 0
    said = capsys.readouterr()
    names = [line.partition("=")[0] for line in said.out.splitlines()]
    assert names == [f"CART_{name.upper()}" for name in Settings.model_fields]
    assert "hunter2" not in said.out + said.err
    assert re.search(r"^CART_DATABASE_URL=postgresql://cart:\*\*\*@db:5432/cart +# \w", said.out, re.MULTILINE)
    assert re.search(r"^CART_LISTEN=h:1 +# \w", said.out, re.MULTILINE)


def test_migrate_prints_the_change_and_a_second_run_changes_nothing(
    backend: str,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = "sqlite:///cart.db" if backend == "sqlite" else request.getfixturevalue("empty_postgres")
    monkeypatch.setenv("CART_DATABASE_URL", url)
    latest = revisions.LATEST
    assert cli.main(["migrate", "--dry-run"]) == 0
    pending = re.findall(r"^schema (\d+): .+ \(not run\)$", capsys.readouterr().out, re.MULTILINE)
    assert pending == revisions.known_revisions()
    assert cli.main(["migrate"]) == 0
    *steps, last = capsys.readouterr().out.splitlines()
    assert re.findall(r"^schema (\d+): .+ s\)$", "\n".join(steps), re.MULTILINE) == pending
    assert last == f"the database was at schema (none) and is now at {latest}"
    assert cli.main(["migrate"]) == 0
    assert capsys.readouterr() == (f"the database is at schema {latest}\n", "")


@pytest.mark.parametrize("command", [["migrate"], ["reservations", "after-restore"]], ids=" ".join)
@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:hunter2@127.0.0.1:1/d",
        "postgresql://u:hunter2@host.invalid/d",
        "postgresql://u:hunter2@/d?host=/nonexistent",
        "postgresql://u:hunter2@127.0.0.1:1/d?sslmode=require",
        "postgresql://u:hunter2@127.0.0.1:1/d?prepared_statement_cache_size=many",
        "postgresql://127.0.0.1:1/d?user=u&password=hunter2",
    ],
)
def test_an_unreachable_postgresql_server_is_reported_within_seconds(
    command: list[str], url: str, refuse: Refuse
) -> None:
    started = time.monotonic()
    assert refuse(*command, CART_DATABASE_URL=url).startswith("CART_DATABASE_URL: ")
    assert time.monotonic() - started < 20


def test_a_postgresql_server_that_never_answers_is_reported_within_seconds(taken_port: int, refuse: Refuse) -> None:
    started = time.monotonic()
    said = refuse("migrate", CART_DATABASE_URL=f"postgresql://u:hunter2@127.0.0.1:{taken_port}/d")
    assert said.startswith("CART_DATABASE_URL: the database ")
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("command", ["migrate", "serve", "reconcile"])
@pytest.mark.parametrize(
    ("change", "why"), [(("/postgres?", "/missing?"), "missing"), (("postgres@", "nobody@"), "nobody")]
)
def test_a_postgresql_server_that_refuses_the_login_is_reported(
    command: str, change: tuple[str, str], why: str, postgres: PostgresServer, refuse: Refuse
) -> None:
    # No command waits for another password or another name.
    said = refuse(command, CART_DATABASE_URL=postgres.url.replace(*change), CART_LISTEN="127.0.0.1:0")
    assert said.startswith("CART_DATABASE_URL: ")
    assert why in said


@pytest.mark.parametrize("command", ["migrate", "serve"])
def test_a_missing_directory_is_reported(command: str, refuse: Refuse) -> None:
    assert refuse(command, CART_DATABASE_URL="sqlite:///no/such/cart.db", CART_LISTEN="127.0.0.1:0") == (
        "CART_DATABASE_URL: no/such/cart.db cannot be used: there is no directory no/such"
    )


@pytest.mark.parametrize("command", ["migrate", "serve"])
def test_a_file_that_is_not_a_database_is_refused_and_left_unchanged(
    command: str, folder: Path, refuse: Refuse
) -> None:
    content = "not a database, and longer than the header of a database file\n" * 20
    (folder / "cart.db").write_text(content)
    assert "file is not a database" in refuse(command, CART_LISTEN="127.0.0.1:0")
    assert (folder / "cart.db").read_text() == content


def test_a_directory_in_place_of_the_database_file_is_refused(folder: Path, refuse: Refuse) -> None:
    (folder / "cart.db").mkdir()
    assert refuse("migrate").startswith("CART_DATABASE_URL: ")


def test_reconcile_needs_postgresql(refuse: Refuse) -> None:
    assert refuse("reconcile").startswith("reconcile needs PostgreSQL")


def test_serving_without_a_reconciler_needs_postgresql(refuse: Refuse) -> None:
    assert refuse("serve", "--no-reconciler").startswith("--no-reconciler needs PostgreSQL")


def test_a_port_in_use_is_reported(taken_port: int, refuse: Refuse) -> None:
    said = refuse("serve", CART_LISTEN=f"127.0.0.1:{taken_port}")
    assert said.startswith(f"CART_LISTEN: cannot listen on 127.0.0.1:{taken_port}")


def test_a_port_in_use_is_reported_before_any_worker_starts(refuse: Refuse) -> None:
    # With reuse_port the workers could share the port, so only our own check refuses it.
    with closing(socket.create_server(("127.0.0.1", 0), reuse_port=True)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        environ = {"CART_LISTEN": address, "CART_DATABASE_URL": "postgresql://u:hunter2@127.0.0.1:1/d"}
        said = refuse("serve", "--workers", "2", **environ)
    assert said == f"CART_LISTEN: cannot listen on {address}: it is taken, or not an address of this machine"


def test_a_host_name_that_workers_cannot_resolve_is_reported(refuse: Refuse) -> None:
    environ = {
        "CART_LISTEN": "no-such-host.invalid:1",
        "CART_ALLOW_ANYONE_TO_BE_ANY_USER": "true",
        "CART_DATABASE_URL": "postgresql://u:hunter2@127.0.0.1:1/d",
    }
    assert refuse("serve", "--workers", "2", **environ).startswith(
        "CART_LISTEN: cannot listen on no-such-host.invalid:1: "
    )


def test_workers_need_postgresql(refuse: Refuse) -> None:
    said = refuse("serve", "--workers", "2")
    assert said == "--workers needs PostgreSQL: a SQLite file belongs to one process"


@pytest.mark.parametrize("count", ["0", "-1", "257", "many"])
def test_an_invalid_number_of_workers_is_refused(count: str, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        cli.main(["serve", "--workers", count])
    assert "--workers" in capsys.readouterr().err


def test_a_grpc_port_in_use_stops_the_simulator(taken_port: int, refuse: Refuse) -> None:
    said = refuse("simulate", "--listen", f"127.0.0.1:{taken_port}", "--http-listen", "127.0.0.1:0")
    assert said == f"the simulator cannot start: cannot listen on 127.0.0.1:{taken_port}"


def test_an_http_port_in_use_stops_the_simulator(taken_port: int, refuse: Refuse) -> None:
    said = refuse("simulate", "--listen", "127.0.0.1:0", "--http-listen", f"127.0.0.1:{taken_port}")
    assert said.startswith("the simulator cannot start: ")
    assert str(taken_port) in said


WRONG_OPTIONS = [
    (["--latency", "-1s"], None),
    (["--latency", "25h"], "latency must be 0 to 24 hours"),
    (["--slow", "1.5"], "slow must be a probability from 0 to 1"),
    (["--out-of-stock", "nan"], "out_of_stock must be a probability"),
    (["--stock", "beans"], "--stock 'beans' must be SKU=N"),
    (["--stock", "beans=-1"], "must be SKU=N"),
    (["--stock", "=1"], "must be SKU=N"),
    (["--stock", "beans=²"], "must be SKU=N"),
    (["--default-stock", "-5"], "stock"),
    (["--http-listen", "nonsense"], "must be HOST:PORT"),
    (["--journal", "no/such/file"], "No such file or directory"),
    (["--journal", "."], ".: it is not a file"),
]


@pytest.mark.parametrize(
    "command", [["simulate", "--listen"], ["dev", "--simulator-listen"]], ids=lambda command: command[0]
)
@pytest.mark.parametrize(
    ("options", "why"), WRONG_OPTIONS, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_an_invalid_option_of_the_simulator_is_refused(
    command: list[str], options: list[str], why: str | None, refuse: Refuse, stops_at_once: None, capsys: Any
) -> None:
    arguments = [*command, "127.0.0.1:0", *options]
    if why is None:
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        assert ended.value.code == 2
        return
    assert why in refuse(*arguments, CART_LISTEN="127.0.0.1:0")


@pytest.mark.parametrize("address", ["nonsense", "50061", ":50061", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:http"])
def test_an_invalid_address_of_the_simulator_is_refused(address: str, refuse: Refuse) -> None:
    said = refuse("simulate", "--listen", address)
    assert said == "the simulator cannot start: the address must be HOST:PORT, such as 127.0.0.1:50051"


def test_the_highest_port_for_grpc_needs_an_explicit_port_for_http(refuse: Refuse) -> None:
    assert "--http-listen" in refuse("simulate", "--listen", "127.0.0.1:65535")


@pytest.mark.parametrize(
    "arguments",
    [[], ["nonsense"], ["serve", "--nonsense"], ["simulate", "--default-stock", "many"], ["simulate", "--seed", "x"],
     ["simulate", "--slow", "often"], ["migrate", "now"], ["dev", "--listen", "127.0.0.1:0"]],
    ids=" ".join,
)  # fmt: skip
def test_wrong_use_ends_with_status_2_and_a_usage_line(arguments: list[str], capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("usage: cart-grpc")
    assert "Traceback" not in said


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == 0
    assert f"usage: cart-grpc {command}" in capsys.readouterr().out


def test_serve_prints_its_address_and_stops(
    stops_at_once: None, database_url: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CART_DATABASE_URL", database_url)
    monkeypatch.setenv("CART_DATABASE_SHARDS", str(shards_of(database_url)))
    monkeypatch.setenv("CART_LISTEN", "127.0.0.1:0")
    assert cli.main(["serve"]) == 0
    assert re.fullmatch(r"cart-grpc listens on 127\.0\.0\.1:[1-9]\d*\n", capsys.readouterr().out)


def test_reconcile_prints_that_it_runs_and_stops(
    stops_at_once: None, postgres: PostgresServer, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgres.create_database(f"reconcile_{os.getpid()}", template="template_cart")
    monkeypatch.setenv("CART_DATABASE_URL", url)
    assert cli.main(["reconcile"]) == 0
    assert capsys.readouterr().out == "cart-grpc reconciles\n"


def test_simulate_prints_its_addresses_and_stops(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = asyncio.Event()
    stopped.set()
    monkeypatch.setattr(process, "stop_signal", lambda: stopped)
    assert cli.main(["simulate", "--listen", "127.0.0.1:0"]) == 0
    said = capsys.readouterr().out
    assert re.fullmatch(r"the simulator listens on grpc://127\.0\.0\.1:\d+ and http://127\.0\.0\.1:\d+\n", said)


def test_dev_prints_all_addresses_and_example_calls(
    stops_at_once: None, folder: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CART_LISTEN", "127.0.0.1:0")
    assert cli.main(["dev", "--simulator-listen", "127.0.0.1:0"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^the simulator listens on grpc://127\.0\.0\.1:[1-9]\d* and ", said, re.MULTILINE)
    port = re.search(r"^cart-grpc listens on 127\.0\.0\.1:([1-9]\d*)$", said, re.MULTILINE)
    assert port is not None
    admin_port = re.search(r"^cart-grpc listens for operators on 127\.0\.0\.1:([1-9]\d*)$", said, re.MULTILINE)
    assert admin_port is not None
    assert f"reservations stats --address 127.0.0.1:{admin_port[1]}\n" in said
    assert f"export CARTGRPC_ADDRESS=127.0.0.1:{port[1]}\n" in said
    assert said.count(f"127.0.0.1:{port[1]}/cartgrpc.v1.CartService/") == 1
    assert said.count(f"127.0.0.1:{port[1]} cartgrpc.v1.CartService/") == 1
    assert (folder / "cart.db.simulator.jsonl").exists()


async def health_of(*arguments: str) -> int:
    """Run `cart-grpc health` in a thread, because it blocks and this loop's server must answer. Returns its status."""
    return await asyncio.to_thread(cli.main, ["health", *arguments])


async def test_health_ends_with_0_if_the_server_is_ready_and_1_if_not(
    capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = grpc.aio.server()
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        states = health_pb2.HealthCheckResponse
        for state, status in ((states.SERVING, 0), (states.NOT_SERVING, 1), (states.UNKNOWN, 1)):
            await servicer.set(SERVICE, state)
            assert await health_of(f"127.0.0.1:{port}") == status
            assert capsys.readouterr().out == f"{states.ServingStatus.Name(state)}\n"
        await servicer.set(SERVICE, states.SERVING)
        monkeypatch.setenv("CART_LISTEN", f"0.0.0.0:{port}")
        assert await health_of() == 0
    finally:
        await server.stop(0)
    capsys.readouterr()
    assert await health_of() == 1
    assert capsys.readouterr().err == f"cart-grpc: 127.0.0.1:{port} does not answer: UNAVAILABLE\n"


async def test_health_ends_with_1_if_another_service_answers(capsys: Any) -> None:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        assert await health_of(f"127.0.0.1:{port}") == 1
    finally:
        await server.stop(0)
    assert capsys.readouterr().err == f"cart-grpc: 127.0.0.1:{port} does not answer: UNIMPLEMENTED\n"


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1", ":1", "127.0.0.1:http", "127.0.0.1:65536"])
def test_an_invalid_address_for_health_is_wrong_use(address: str, refuse: Refuse) -> None:
    assert "must be HOST:PORT" in refuse("health", address)


def run_process(folder: Path, *arguments: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    """Run the installed command to its end."""
    return subprocess.run(
        [Path(sys.executable).with_name("cart-grpc"), *arguments],
        cwd=folder, env={"PATH": os.defpath, **environ}, capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "environ", "said"),
    [
        (["serve"], {"CART_LISTEN": "x"}, "CART_LISTEN: "),
        (["migrate"], {"CART_DATABASE_URL": "postgresql://u:hunter2@127.0.0.1:1/d"}, "CART_DATABASE_URL: "),
        (["simulate", "--slow", "2"], {}, "the simulator cannot start: "),
        (["health", "127.0.0.1:1"], {}, "127.0.0.1:1 does not answer"),
    ],
)
def test_a_process_that_fails_prints_one_line_and_no_traceback(
    arguments: list[str], environ: dict[str, str], said: str, folder: Path
) -> None:
    ended = run_process(folder, *arguments, **environ)
    assert ended.returncode == (1 if arguments[0] == "health" else 2)
    assert ended.stdout == ""
    assert ended.stderr.startswith(f"cart-grpc: {said}")
    assert ended.stderr.count("\n") == 1
    assert "hunter2" not in ended.stderr


def test_a_process_whose_port_is_in_use_prints_one_line(taken_port: int, folder: Path) -> None:
    ended = run_process(folder, "serve", CART_LISTEN=f"127.0.0.1:{taken_port}")
    lines = [line for line in ended.stderr.splitlines() if not CORE_LOG.match(line)]
    assert ended.returncode == 2
    assert len(lines) == 1, ended.stderr
    assert lines[0].startswith("cart-grpc: CART_LISTEN: cannot listen on ")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["ftp://h:1"], "the scheme is missing or unknown"),
        (["grpc://h:1", "--stock", "4"], "--stock must be 5 or more"),
        (["grpc://h:1", "--stock", "9", "--commit"], "--stock must be 10 or more with --commit, not 9"),
        (["grpc://h:1", "--ttl", "61s"], "--ttl must be 0, or 1s to 1m, not 1m1s"),
        (["grpc://h:1", "--ttl", "999ms"], "--ttl must be 0, or 1s to 1m, not 0.999s"),
        (["grpc://h:1", "--timeout", "0"], "--timeout must be more than 0s"),
        (["grpc://h:1", "--sku", ""], "--sku must not be empty"),
        (["grpc://127.0.0.1:1"], "no Reservation API answers at grpc://127.0.0.1:1: UNAVAILABLE"),
        (["http://127.0.0.1:1"], "no Reservation API answers at http://127.0.0.1:1: UNAVAILABLE"),
        (["basic+http://127.0.0.1:1"], "no Reservation API answers at basic+http://127.0.0.1:1: UNAVAILABLE"),
    ],
)
def test_a_probe_that_cannot_start_prints_the_reason(arguments: list[str], why: str, refuse: Refuse) -> None:
    assert why in refuse("probe", *arguments)


@pytest.mark.parametrize(
    "option",
    [
        "simulate --latency",
        "dev --slow-latency",
        "simulate --duplicate-delay",
        "probe --ttl",
        "probe --timeout",
        "reservations list --min-age",
    ],
)
@pytest.mark.parametrize("value", ["soon", "", "-1", "inf"])
def test_an_option_that_is_no_duration_is_refused_with_the_valid_forms(option: str, value: str, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        cli.main([*option.split(), value])
    assert f"{value!r} must be a duration such as 90, 90s, 500ms, 15m, 1h30m, 8d or PT15M" in capsys.readouterr().err


async def probing(folder: Path, *arguments: str) -> asyncio.subprocess.Process:
    """Start the installed command."""
    return await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("cart-grpc"), "probe", *arguments,
        cwd=folder, env={"PATH": os.defpath}, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


async def test_a_probe_ends_with_0_if_the_contract_is_kept_and_1_if_that_is_unknown(folder: Path) -> None:
    server = SimulatorServer(make_simulator(SimulatorConfig(stock={"tea": 0})))
    ports = await server.start("127.0.0.1:0", None)
    try:
        for sku, status, verdict in (("beans", 0, "PASSED: no tested rule is broken"), ("tea", 1, "UNKNOWN: rules ")):
            process = await probing(folder, f"grpc://127.0.0.1:{ports.grpc}", "--sku", sku, "--ttl", "1s")
            said, errors = (each.decode() for each in await process.communicate())
            assert (process.returncode, errors) == (status, "")
            assert f"\ncartgrpc.reservation.v1: {verdict}" in said
            assert re.search(r"^reservations: \d+ released, 0 left behind$", said, re.MULTILINE)
            assert re.search(r"^calls: \d+ answered, 0 unanswered; p50 \d+ ms, p90 .*, slowest ", said, re.MULTILINE)
    finally:
        await server.stop(0)


async def test_a_basic_api_is_probed_against_the_basic_contract(folder: Path) -> None:
    simulator = make_simulator(SimulatorConfig(stock={"beans": 10}))
    server = SimulatorServer(simulator)
    ports = await server.start(None, "127.0.0.1:0")
    try:
        url = f"basic+http://127.0.0.1:{ports.http}/basic"
        process = await probing(folder, url, "--sku", "beans", "--stock", "10")
        said, errors = (each.decode() for each in await process.communicate())
    finally:
        await server.stop(0)
    assert (process.returncode, errors) == (0, "")
    assert "\nbasic: PASSED: no tested rule is broken" in said
    assert simulator.levels("beans").held == 0


async def test_ctrl_c_ends_a_probe_after_it_has_released_everything(folder: Path) -> None:
    simulator = make_simulator(SimulatorConfig(latency_us=100_000))
    server = SimulatorServer(simulator)
    ports = await server.start("127.0.0.1:0", None)
    try:
        process = await probing(folder, f"grpc://127.0.0.1:{ports.grpc}", "--sku", "beans", "--ttl", "0")
        while simulator.levels("beans").held < 10:
            await asyncio.sleep(0.01)
        process.send_signal(signal.SIGINT)
        said = (await process.communicate())[0].decode()
        await simulator.settle()
    finally:
        await server.stop(0)
    assert process.returncode == 1
    assert "interrupted" in said
    assert simulator.levels("beans").held == 0
