"""No caller, no operator and no Reservation API can break a line of a server's log, or get a secret into it."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from cartgrpc.v1 import cart_admin_service_pb2 as admin_pb
from cartgrpc.v1 import cart_service_pb2 as pb
from cartgrpc.v1 import cart_service_pb2_grpc

from cart_grpc import app
from cart_grpc.logs import output
from cart_grpc.settings import Settings
from tests.access.guarded import WEB, Files, bearing
from tests.authentication.issuer import make_token, signing_key
from tests.logs.lines import check_text, parse, started

CARTS, ADMIN = "/cartgrpc.v1.CartService/", "/cartgrpc.v1.CartAdminService/"
FORGED = '2026-01-01T00:00:00.000Z ERROR forged {"event":"forged"}'
HOSTILE = (
    f"a\n{FORGED}\n",
    f"\r\n{FORGED}",
    "\x1b[2J\x1b]0;owned\x07",
    "\u202eabc\u2066\u200b\ufeff",
    "\u2028\u2029\x85\x0b\x0c\x1c",
    "\0",
    '"}\n{"event":"forged',
    "%s %d %(message)s {0}",
    "users/al\nice/carts/default",
    "x" * 250_000,
    "\n" * 100_000,
)
# Texts that are no UTF-8: a lone surrogate, an overlong zero, half a character.
MALFORMED = (b"\xed\xa0\x80", b"\xc0\x80", b"\xc3")
SECRET = "hunter2"


def requests() -> Iterator[tuple[str, bytes]]:
    """Calls with hostile text in every field that a caller can fill."""
    for text in HOSTILE:
        add = pb.AddItemRequest(parent="users/alice/carts/default", request_id=text)
        add.item.sku = text
        add.item.labels[text[:60]] = text
        yield CARTS + "AddItem", add.SerializeToString()
        yield CARTS + "AddItem", pb.AddItemRequest(parent=text).SerializeToString()
        yield CARTS + "GetCart", pb.GetCartRequest(name=f"users/{text}/carts/default").SerializeToString()
        yield CARTS + "RemoveItem", pb.RemoveItemRequest(name=text, etag=text).SerializeToString()
        yield CARTS + "ListCarts", pb.ListCartsRequest(parent=text, page_token=text, filter=text).SerializeToString()
        yield ADMIN + "PauseReservations", admin_pb.PauseReservationsRequest(reason=text[:100]).SerializeToString()
        yield ADMIN + "ResumeReservations", b""
        yield ADMIN + "GetReservation", admin_pb.GetReservationRequest(name=text).SerializeToString()
    for data in MALFORMED:
        yield CARTS + "GetCart", b"\x0a" + bytes([len(data)]) + data


async def send_all(carts: int, admin: int) -> int:
    """Send every hostile call. Returns how many were refused."""
    refused = 0
    options = [("grpc.primary_user_agent", f"x {FORGED}"), ("grpc.use_local_subchannel_pool", 1)]
    metadata = (("x-bin", b"\n\x1b[2J\xff"), ("traceparent", f"00 {FORGED}"), ("authorization", f"Bearer {SECRET}"))
    async with (
        grpc.aio.insecure_channel(f"127.0.0.1:{carts}", options=options) as to_carts,
        grpc.aio.insecure_channel(f"127.0.0.1:{admin}", options=options) as to_admin,
    ):
        for path, data in requests():
            channel: Any = to_admin if path.startswith(ADMIN) else to_carts
            try:
                await channel.unary_unary(path)(data, metadata=metadata, timeout=20)
            except grpc.aio.AioRpcError:
                refused += 1
    return refused


@asynccontextmanager
async def hostile_api() -> AsyncIterator[str]:
    """A Reservation API over HTTP whose refusals are as hostile as HTTP allows. Yields its URL."""
    body = json.dumps({"error": {"code": 503, "status": "BAD\n", "message": f"\x1b[2J\n{FORGED}\u202e\udcff"}})
    answer = f"HTTP/1.1 503 \x1b[2J\xff\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer.encode("latin-1"))
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize("style", ["json", "text"])
async def test_no_caller_can_break_a_line(style: output.Format, migrated_file: Path, tmp_path: Path) -> None:
    shutil.copy(migrated_file, tmp_path / "cart.db")
    async with AsyncExitStack() as stack:
        written = stack.enter_context(started(style))
        settings = Settings(
            listen="127.0.0.1:0", admin_listen="127.0.0.1:0", database_url=f"sqlite:///{tmp_path}/cart.db",
            reservation_url=await stack.enter_async_context(hostile_api()), log_calls="all", lame_duck=0.0,
            reservation_breaker_threshold=1,
        )  # fmt: skip
        async with app.running(settings, serve=True, reconcile=True) as ports:
            assert await send_all(ports.port, ports.admin_port) > len(HOSTILE)
            async with grpc.aio.insecure_channel(f"127.0.0.1:{ports.port}") as channel:
                add = pb.AddItemRequest(parent="users/alice/carts/default")
                add.item.sku = "tea"
                await cart_service_pb2_grpc.CartServiceStub(channel).AddItem(add, timeout=20)
            async with asyncio.timeout(20):
                while "breaker_opened" not in written.getvalue():
                    await asyncio.sleep(0.01)
    log = written.getvalue()
    assert SECRET not in log
    assert max(map(len, log.splitlines())) < 10_000
    if style == "text":
        check_text(log)
        return
    lines = parse(log)
    seen = {line["event"] for line in lines}
    assert {"call_refused", "call_ended", "operator_paused", "breaker_opened", "started", "ready", "drained"} <= seen
    assert not [line for line in lines if line["level"] == "ERROR"]
    assert {line["logger"].partition(".")[0] for line in lines} == {"cart_grpc"}


async def test_a_denial_is_a_line_without_the_token(tmp_path: Path) -> None:
    files = Files(tmp_path)
    stranger = make_token("alice", key=signing_key("ES256", 2))
    alice = make_token("alice", key=signing_key("ES256"))
    tokens = ("", SECRET, f"{FORGED}", stranger, f"{alice}{SECRET}", "eyJ")
    request = pb.GetCartRequest(name="users/bob/carts/default").SerializeToString()
    with started("json") as written:
        async with app.running(files.settings(), serve=True, reconcile=False) as ports:
            async with files.open(ports.port) as channel:
                for token in (*tokens, alice):
                    with suppress(grpc.RpcError):
                        await channel.unary_unary(CARTS + "GetCart")(request, metadata=bearing(token), timeout=20)
            async with files.open(ports.service_port, files.web()) as channel:
                with suppress(grpc.RpcError):
                    await channel.unary_unary(CARTS + "GetCart")(request, timeout=20)
    denied = [line for line in parse(written.getvalue()) if line["event"] == "call_refused"]
    for token in (stranger, alice):
        assert all(part not in written.getvalue() for part in token.split("."))
    assert SECRET not in written.getvalue()
    codes = [line["code"] for line in denied]
    assert codes[-2:] == ["PERMISSION_DENIED", "NOT_FOUND"]
    assert set(codes[:-2]) == {"UNAUTHENTICATED"}
    assert {line.get("fault") for line in denied} >= {"UNKNOWN_KEY", "MALFORMED"}
    of_alice, of_service = denied[-2:]
    assert (of_alice["caller"], of_alice["user"], of_alice["field"]) == ("users/alice", "bob", "name")
    assert of_service["caller"] == WEB
