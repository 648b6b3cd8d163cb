"""Types the commands of the documents as they are written, but for those in the inventory."""

import json
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cart_grpc.cli import cart_connection
from tests.documents import inventory
from tests.documents.pages import PYTHON_CLIENT, fences, read
from tests.documents.terminal import Job, Terminal, opened_terminal

# A reader with one server, which `make run` has started, types the commands of these pages one after the other.
SERVED = [
    "README.md",
    "docs/quick-start.md",
    "docs/concepts.md",
    # It erases alice, so no checkout of hers may be open.
    "docs/operations.md",
    PYTHON_CLIENT,
    "docs/runbook.md",
    "docs/troubleshooting.md",
]
# These pages start their own servers.
STANDALONE = ["docs/upgrades.md", "docs/backup.md", "docs/tracing.md"]
SCRIPTS = ["docs/tokens.md", "docs/mtls.md"]
RUN = [*SERVED, *STANDALONE, *SCRIPTS]

SERVER = re.compile(r"\bcart-grpc (serve|dev)$")
ITEM = "users/alice/carts/default/items/ITEM"
RESERVATION = "01a20587-4c6f-775c-b4b6-472d24107630"
AFTER_RESTORE = "cart-grpc reservations after-restore"


@pytest.fixture
async def terminal(tmp_path: Path) -> AsyncIterator[Terminal]:
    async with opened_terminal(tmp_path) as terminal:
        yield terminal


def steps(page: str) -> list[tuple[str, str]]:
    """The commands of a page, each with the output that it shows, without those in the inventory."""
    found = [step for fence in fences(page, "console") for step in fence.steps]
    without_comments = [(re.sub(r"\s+# .*$", "", command), shown) for command, shown in found]
    return [(command, shown) for command, shown in without_comments if not inventory.find(page, command)]


def shape(line: str) -> str:
    """A line without its numbers and its spaces, which differ."""
    return re.sub(r"\d+", "0", " ".join(line.split()))


def check_shown(command: str, shown: str, output: str) -> None:
    """A cart is shown as it is printed. Of an operator's table, whose rows differ, the first line is."""
    lines = shown.splitlines() if command.startswith("cart-grpc cart ") else shown.splitlines()[:1]
    headed = [line for line in lines if lines[0].isupper()]
    assert {shape(line) for line in headed} <= {shape(line) for line in output.splitlines()}, f"{command}: {output}"


class Newcomer:
    """Somebody who types the commands of the pages in SERVED, and restarts the server as they say."""

    def __init__(self, terminal: Terminal) -> None:
        self.terminal = terminal
        self.outputs: dict[str, str] = {}
        self.watches: list[Job] = []
        self.watched: list[str] = []
        self._server: Job | None = None
        self._item = ""

    async def type(self, command: str, shown: str) -> None:
        """Run one command, whose output must be as it is shown."""
        terminal = self.terminal
        if command == "make run":
            if self._server is None:
                self._server = await terminal.start("cart-grpc dev")
        elif command == "pkill -9 -f 'cart-grpc dev'":
            # It would kill the servers of other tests.
            assert self._server
            await terminal.end(self._server, signal.SIGKILL)
            self._server = await terminal.start("cart-grpc dev")
        elif command.startswith("cart-grpc cart watch"):
            self.watches.append(await terminal.start(command, re.compile("^users/", re.MULTILINE)))
        elif command == "cart-grpc top":
            await terminal.end(await terminal.start(command, re.compile("serving|calls")))
        elif command == AFTER_RESTORE:
            # It needs the database for itself.
            assert self._server
            await terminal.end(self._server)
            await terminal.type(command)
            self._server = None
        else:
            command = command.replace(ITEM, self._item)
            if RESERVATION in command:
                command = command.replace(RESERVATION, await self._find_reservation())
            self.outputs[command] = output = await terminal.type(command)
            check_shown(command, shown, output)
            if command.startswith("cart-grpc cart checkout complete"):
                await self._end_watches()
            if not self._item and command.startswith("rpc") and '"item"' in output:
                self._item = json.loads(output)["item"]["name"]

    async def _end_watches(self) -> None:
        """Wait for the watches, which end with the sale. A slow one would find the next cart of the name instead."""
        while self.watches:
            watch = self.watches.pop()
            await self.terminal.type(f"wait {watch.pid}")
            self.watched.append(watch.output)

    async def _find_reservation(self) -> str:
        await self.terminal.type("cart-grpc cart add carol kettle --wait 10s")
        url = "http://127.0.0.1:50052/cartgrpc.v1.CartAdminService/ListReservations"
        listed = await self.terminal.type(f'rpc -d \'{{"parent":"users/carol","states":["STATE_HELD"]}}\' {url}')
        reservation: str = json.loads(listed)["reservations"][0]["name"].rpartition("/")[2]
        return reservation


@pytest.mark.timeout(240)
async def test_the_commands_for_one_server_run_and_sell_a_cart_once_through_a_kill(terminal: Terminal) -> None:
    newcomer = Newcomer(terminal)
    for page in SERVED:
        for command, shown in steps(page):
            await newcomer.type(command, shown)
        if page == "docs/concepts.md":
            # buf asks for the older one by itself only if the newer one is missing.
            await terminal.type('rpc --reflect-protocol grpc-v1alpha -d \'{"parent":"users/alice"}\' $url/ListCarts')
    outputs = newcomer.outputs
    assert "RESERVED" in outputs["cart-grpc cart add bob espresso-beans 2 --price 12.50EUR --wait 10s"]
    printed = outputs["cart-grpc cart add alice espresso-beans 2 --price 12.50EUR"]
    assert "espresso-beans         2   12.50 EUR  PENDING" in printed
    assert "RESERVED" in outputs["cart-grpc cart add alice filters --wait 10s"]
    assert "3 items, 7 units" in outputs["cart-grpc cart merge alice guest-7 --wait 10s"]
    assert "OPEN  ready" in outputs["cart-grpc cart checkout begin alice --wait 10s"]
    assert "COMPLETED" in outputs["cart-grpc cart checkout complete alice order-17"].splitlines()[0]
    [watched] = newcomer.watched
    assert "CHECKED_OUT" in watched
    assert "\nyes " in outputs["cart-grpc users erase alice --wait"]
    assert "kettle" in next(output for command, output in outputs.items() if "reservations release" in command)


async def test_the_commands_for_other_servers_run(terminal: Terminal) -> None:
    for page in STANDALONE:
        for command, _ in steps(page):
            if SERVER.search(command):
                await terminal.end(await terminal.start(command))
            else:
                await terminal.type(command)


async def test_the_commands_with_tokens_run(terminal: Terminal) -> None:
    server, caller = fences("docs/tokens.md", "sh")
    await terminal.start(server.text.rstrip())
    output = await terminal.type(caller.text, status=1)
    assert re.search(r"^beans +2 .*\n(.*\n)*.*PERMISSION_DENIED", output, re.MULTILINE), output


async def test_the_commands_with_certificates_run(terminal: Terminal) -> None:
    server, caller = fences("docs/mtls.md", "sh")
    await terminal.start(server.text.rstrip())
    assert "beans" in await terminal.type(caller.text)


def test_the_call_with_grpcurl_is_one_of_the_calls_with_buf() -> None:
    [grpcurl] = [
        command
        for fence in fences("docs/quick-start.md")
        for command in fence.commands
        if command.startswith("grpcurl")
    ]
    call = re.fullmatch(
        r"grpcurl -plaintext (-d '[^']+') \\\s+127\.0\.0\.1:50051 cartgrpc\.v1\.CartService/AddItem", grpcurl
    )
    assert call
    assert f"rpc {call[1]} $url/AddItem" in dict(steps("docs/quick-start.md"))


def test_the_addresses_in_the_documents_are_the_defaults() -> None:
    assert f"{cart_connection.DEFAULT_ADDRESS}/cartgrpc.v1.CartService" in read("docs/quick-start.md")
