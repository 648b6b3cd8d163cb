"""Each port lets in those who prove who they are in the port's own way, and nobody else."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from cart_grpc import app
from cart_grpc.rpc.methods import ADMIN_SERVICE, CART_SERVICE, HEALTH_AND_REFLECTION, METHODS
from cart_grpc.startup import StartupError
from tests.access.guarded import OPERATOR, WEB, Files, Guarded, add, alices_token, list_carts, operate, running
from tests.pem import issue, new_authority
from tests.rpc.refusal import to_refusal

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
# gRPC tells a client no more of a failed handshake.
NOT_CONNECTED = grpc.StatusCode.UNAVAILABLE


@pytest.fixture(scope="module")
async def guarded(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Guarded]:
    async with running(Files(tmp_path_factory.mktemp("guarded"))) as server:
        yield server


async def code_of(call: Awaitable[Any]) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code()


async def reason_of(call: Awaitable[Any]) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return to_refusal(caught.value).info.reason


async def check(channel: Any, service: str = "") -> int:
    call = channel.unary_unary("/grpc.health.v1.Health/Check")
    request = health_pb2.HealthCheckRequest(service=service).SerializeToString()
    return int(health_pb2.HealthCheckResponse.FromString(await call(request, timeout=20)).status)


async def test_a_token_over_tls_is_enough_on_the_callers_port(guarded: Guarded) -> None:
    async with guarded.files.open(guarded.ports.port) as channel:
        assert await add(channel, alices_token()) >= 1
        assert await reason_of(add(channel)) == "TOKEN_MISSING"
        assert await check(channel, "cartgrpc.v1.CartService") == SERVING


async def test_a_certificate_is_no_identity_on_the_callers_port(guarded: Guarded) -> None:
    async with guarded.files.open(guarded.ports.port, guarded.files.web()) as channel:
        assert await reason_of(add(channel)) == "TOKEN_MISSING"


async def test_a_services_certificate_is_enough_on_the_port_of_services(guarded: Guarded) -> None:
    async with guarded.files.open(guarded.ports.service_port, guarded.files.web()) as channel:
        assert await add(channel) >= 1
        assert await check(channel, "cartgrpc.v1.CartService") == SERVING


async def test_a_token_is_no_identity_on_the_port_of_services(guarded: Guarded) -> None:
    stranger = issue(guarded.files.callers, "stranger.example")
    async with guarded.files.open(guarded.ports.service_port, stranger) as channel:
        assert await reason_of(add(channel, alices_token())) == "PERMISSION_DENIED"


async def test_an_operators_certificate_is_enough_on_the_operators_port(guarded: Guarded) -> None:
    operator = issue(guarded.files.callers, OPERATOR)
    async with guarded.files.open(guarded.ports.admin_port, operator) as channel:
        await operate(channel)
    async with guarded.files.open(guarded.ports.admin_port, guarded.files.web()) as channel:
        assert await reason_of(operate(channel)) == "PERMISSION_DENIED"


@pytest.mark.parametrize("caller", ["none", "another authority", "expired", "plaintext"])
@pytest.mark.parametrize("port", ["service_port", "admin_port"])
async def test_without_a_valid_certificate_nobody_connects(port: str, caller: str, guarded: Guarded) -> None:
    files, number = guarded.files, getattr(guarded.ports, port)
    if caller == "plaintext":
        channel: Any = grpc.aio.insecure_channel(f"127.0.0.1:{number}")
    else:
        certificates = {
            "none": None,
            "another authority": issue(new_authority(), WEB),
            "expired": files.web(expired=True),
        }
        channel = files.open(number, certificates[caller])
    async with channel:
        assert await code_of(add(channel)) == NOT_CONNECTED
        assert await code_of(check(channel)) == NOT_CONNECTED


async def test_a_plaintext_caller_does_not_connect_to_the_callers_port(guarded: Guarded) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{guarded.ports.port}") as channel:
        assert await code_of(add(channel, alices_token())) == NOT_CONNECTED


async def test_a_caller_that_trusts_another_authority_does_not_connect(guarded: Guarded) -> None:
    async with guarded.files.open(guarded.ports.port, trusts=new_authority()) as channel:
        assert await code_of(add(channel, alices_token())) == NOT_CONNECTED


async def test_the_health_port_answers_checks_in_plaintext(guarded: Guarded) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{guarded.ports.health_port}") as channel:
        for service in ("", "cartgrpc.v1.CartService", "cartgrpc.v1.CartAdminService"):
            assert await check(channel, service) == SERVING
        assert await reason_of(check(channel, "test.v1.Test")) == "SERVICE_NOT_FOUND"


async def test_the_health_port_has_no_other_method(guarded: Guarded) -> None:
    paths = [
        f"/{service}/{method.name}"
        for table in (METHODS, HEALTH_AND_REFLECTION)
        for service, methods in table.items()
        for method in methods
        if (service, method.name) != ("grpc.health.v1.Health", "Check")
    ]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{guarded.ports.health_port}") as channel:
        calls: dict[str, Any] = {path: channel.stream_stream(path)(timeout=20) for path in paths}
        codes = {path: await call.code() for path, call in calls.items()}
    assert set(codes.values()) == {grpc.StatusCode.UNIMPLEMENTED}


@pytest.mark.parametrize("port", ["port", "service_port", "admin_port"])
async def test_with_identities_no_port_offers_reflection(port: str, guarded: Guarded) -> None:
    async with guarded.files.open(getattr(guarded.ports, port), guarded.files.web()) as channel:
        call = channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")(timeout=20)
        assert await call.code() == grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("setting", ["tls_cert_file", "tls_key_file", "client_ca_file", "token_keys"])
@pytest.mark.parametrize("content", [None, b"", b"hunter2"], ids=["missing", "empty", "nonsense"])
async def test_a_file_that_cannot_be_used_ends_the_start_with_a_line_that_names_its_setting(
    setting: str, content: bytes | None, tmp_path: Any
) -> None:
    files = Files(tmp_path)
    if content is not None:
        (tmp_path / "wrong").write_bytes(content)
    changed = files.settings(**{setting: str(tmp_path / "wrong")})
    with pytest.raises(StartupError) as refused:
        async with app.running(changed, serve=True, reconcile=False):
            pass
    text = str(refused.value)
    assert text.startswith(f"CART_{setting.upper()}: ")
    assert text.isprintable()
    assert "hunter2" not in text


async def test_every_port_reports_not_serving_and_serves_on_until_the_lame_duck_time_is_over(tmp_path: Path) -> None:
    files, started, leaving = Files(tmp_path), asyncio.Event(), asyncio.Event()
    ports = app.Ports()

    async def serve() -> None:
        nonlocal ports
        async with running(files, lame_duck=3600.0) as server:
            ports = server.ports
            started.set()
            await leaving.wait()

    serving = asyncio.create_task(serve())
    await started.wait()
    plaintext = grpc.aio.insecure_channel(f"127.0.0.1:{ports.health_port}")
    operator = files.open(ports.admin_port, issue(files.callers, OPERATOR))
    async with plaintext, operator, files.open(ports.port) as user, files.open(ports.service_port, files.web()) as web:
        assert await check(plaintext, "") == SERVING
        leaving.set()
        async with asyncio.timeout(20):
            while await check(plaintext, CART_SERVICE) == SERVING:
                await asyncio.sleep(0.01)
        for channel, service in ((user, CART_SERVICE), (web, CART_SERVICE), (operator, ADMIN_SERVICE)):
            assert await check(channel, service) == NOT_SERVING
            assert await check(plaintext, service) == NOT_SERVING
        await list_carts(user, alices_token())
        await list_carts(web)
        await operate(operator)
        serving.cancel()
        await asyncio.wait([serving])
        assert await code_of(list_carts(user, alices_token())) == grpc.StatusCode.UNAVAILABLE
        assert await code_of(check(plaintext)) == grpc.StatusCode.UNAVAILABLE
