"""Runs the calls in the README's introduction as written, through server reflection."""

import asyncio
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from tests.processes.harness import LISTENS, SIMULATES, Programs

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CALL = re.compile(r"^\$ cart -d '(?P<body>[^']+)' \$(?P<service>url|sim)/(?P<method>\w+)$", re.MULTILINE)
BUF = shutil.which("buf", path=str(Path(sys.executable).parent))
STATES = {"filters": "STATE_RESERVED", "espresso-beans": "STATE_RESERVED", "kettle": "STATE_RESERVED"}


async def call(url: str, body: str, *options: str) -> dict[str, Any]:
    """Call with `buf curl`, without proto files, and return the response."""
    assert BUF is not None
    arguments = ("curl", "--protocol", "grpc", "--http2-prior-knowledge", *options, "-d", body, url)
    process = await asyncio.create_subprocess_exec(
        BUF, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd="/"
    )
    output, errors = await process.communicate()
    assert process.returncode == 0, f"{url} {body}: {errors.decode()}"
    answer: dict[str, Any] = json.loads(output)
    return answer


def test_the_readmes_grpcurl_call_is_one_of_the_tested_calls() -> None:
    grpcurl = re.search(
        r"grpcurl -plaintext -d '([^']+)' \\\s+127\.0\.0\.1:50051 cartgrpc\.v1\.CartService/AddItem", README
    )
    assert grpcurl
    assert grpcurl.group(1) in [match["body"] for match in CALL.finditer(README)]


async def test_the_readmes_calls_end_with_reserved_items(programs: Programs) -> None:
    options = ("--simulator-listen", "127.0.0.1:0", "--latency", "300ms")
    program = programs.start("dev", *options, listen="127.0.0.1:0", database_url="sqlite:///cart.db")
    addresses = {
        "url": f"http://{(await program.says(LISTENS))[1]}/cartgrpc.v1.CartService",
        "sim": f"http://{(await program.says(SIMULATES))[1]}/cartgrpc.simulator.v1.SimulatorService",
    }
    calls = list(CALL.finditer(README))
    assert [match["method"] for match in calls].count("AddItem") >= 3
    item = ""
    for match in calls:
        body = match["body"].replace("users/alice/carts/default/items/ITEM", item)
        answer = await call(f"{addresses[match['service']]}/{match['method']}", body)
        item = item or answer["item"]["name"]
        if match["method"] == "AddItem":
            waits = "max_wait" in match["body"]
            assert answer["item"]["reservation"]["state"] == ("STATE_RESERVED" if waits else "STATE_PENDING")
    for version in ("grpc-v1", "grpc-v1alpha"):
        await call(f"{addresses['url']}/ListCarts", '{"parent":"users/alice"}', "--reflect-protocol", version)
    cart: dict[str, Any] = {}
    for _ in range(200):
        cart = (await call(f"{addresses['url']}/GetCart", '{"name":"users/alice/carts/default"}'))["cart"]
        if not cart.get("reconciling"):
            break
        await asyncio.sleep(0.05)
    assert {item["sku"]: item["reservation"]["state"] for item in cart["items"]} == STATES
