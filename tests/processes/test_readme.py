"""Runs the commands of README and of the first pages as written: with `cart-grpc cart`, and with buf by reflection."""

import asyncio
import json
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from cart_grpc.cli import cart_connection
from tests.processes.harness import LISTENS, SIMULATES, Program, Programs

ROOT = Path(__file__).parents[2]
README, QUICK_START, CONCEPTS = (
    (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/quick-start.md", "docs/concepts.md")
)
COMMAND = re.compile(
    r"^\$ (?:cart-grpc (?P<command>cart .+)"
    r"|rpc -d '(?P<body>[^']+)' \$(?P<service>url|sim)/(?P<method>\w+)"
    r"|(?P<kill>pkill -9 -f 'cart-grpc dev'))$",
    re.MULTILINE,
)
BUF = shutil.which("buf", path=str(Path(sys.executable).parent))
ITEM = "users/alice/carts/default/items/ITEM"


class Newcomer:
    """Somebody who types the commands."""

    def __init__(self, programs: Programs) -> None:
        self._programs = programs
        self._addresses: dict[str, str] = {}
        self._listens = self._simulates = "127.0.0.1:0"
        self._server: Program | None = None
        self.watches: list[Program] = []

    async def make_run(self) -> None:
        """Start the server, at the same addresses as before."""
        options = ("--simulator-listen", self._simulates, "--http-listen", "127.0.0.1:0", "--latency", "300ms")
        # Operators' port by itself: the port after the server's may be another program's when it starts again.
        settings = {"listen": self._listens, "admin_listen": "127.0.0.1:0", "database_url": "sqlite:///cart.db"}
        self._server = self._programs.start("dev", *options, **settings)
        self._listens = (await self._server.says(LISTENS))[1]
        self._simulates = (await self._server.says(SIMULATES))[1]
        self._addresses = {
            "url": f"http://{self._listens}/cartgrpc.v1.CartService",
            "sim": f"http://{self._simulates}/cartgrpc.simulator.v1.SimulatorService",
        }

    async def kill(self) -> None:
        """Kill the server and start it again."""
        assert self._server is not None
        self._server.kill()
        await self.make_run()

    async def cart(self, command: str) -> str:
        """Run `cart-grpc cart …` and return its output. A watch goes on in the background."""
        arguments = [*shlex.split(command), "--address", self._listens]
        if "watch" in arguments:
            watch = self._programs.start(*arguments)
            self.watches.append(watch)
            return (await watch.says(re.compile("^users/.*", re.MULTILINE)))[0]
        return await _output(sys.executable, "-m", "cart_grpc", *arguments)

    async def rpc(self, service: str, method: str, body: str, *options: str) -> dict[str, Any]:
        """Call with `buf curl`, without proto files, and return the response."""
        assert BUF is not None
        arguments = ("curl", "--protocol", "grpc", "--http2-prior-knowledge", *options, "-d", body)
        answer: dict[str, Any] = json.loads(await _output(BUF, *arguments, f"{self._addresses[service]}/{method}"))
        return answer


async def _output(*command: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd="/"
    )
    output, errors = await process.communicate()
    assert process.returncode == 0, f"{command}: {errors.decode()}"
    return output.decode()


def test_the_readmes_grpcurl_call_is_one_of_the_tested_calls() -> None:
    grpcurl = re.search(
        r"grpcurl -plaintext -d '([^']+)' \\\s+127\.0\.0\.1:50051 cartgrpc\.v1\.CartService/AddItem", QUICK_START
    )
    assert grpcurl
    assert grpcurl.group(1) in [match["body"] for match in COMMAND.finditer(QUICK_START)]


def test_the_readmes_addresses_are_the_defaults() -> None:
    assert f"{cart_connection.DEFAULT_ADDRESS}/cartgrpc.v1.CartService" in QUICK_START


async def test_the_readmes_commands_sell_a_cart_once_through_a_kill(programs: Programs) -> None:
    newcomer = Newcomer(programs)
    await newcomer.make_run()
    item, outputs = "", {}
    for match in COMMAND.finditer(README + QUICK_START + CONCEPTS):
        if match["kill"]:
            await newcomer.kill()
        elif match["command"]:
            outputs[match["command"]] = await newcomer.cart(match["command"])
        else:
            answer = await newcomer.rpc(match["service"], match["method"], match["body"].replace(ITEM, item))
            item = item or answer.get("item", {}).get("name", "")
    assert "RESERVED" in outputs["cart add bob espresso-beans 2 --price 12.50EUR --wait 10s"]
    assert (
        "espresso-beans         2   12.50 EUR  PENDING" in outputs["cart add alice espresso-beans 2 --price 12.50EUR"]
    )
    assert "RESERVED" in outputs["cart add alice filters --wait 10s"]
    assert "3 items, 7 units" in outputs["cart merge alice guest-7 --wait 10s"]
    assert "OPEN  ready" in outputs["cart checkout begin alice --wait 10s"]
    assert "COMPLETED" in outputs["cart checkout complete alice order-17"].splitlines()[0]
    sold = await newcomer.rpc("url", "ListCheckouts", '{"parent":"users/alice"}')
    assert [checkout["orderReference"] for checkout in sold["checkouts"]] == ["order-17"]
    (watch,) = newcomer.watches
    assert await watch.ended(20) == 0
    assert "CHECKED_OUT" in watch.output
    for version in ("grpc-v1", "grpc-v1alpha"):
        await newcomer.rpc("url", "ListCarts", '{"parent":"users/alice"}', "--reflect-protocol", version)
