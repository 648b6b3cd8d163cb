"""The settings of the manifests, given to the real program: it starts, its probes succeed, strangers get nothing."""

import os
import re
from pathlib import Path

import grpc
import pytest
from cartgrpc.v1 import cart_service_pb2, cart_service_pb2_grpc
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.certificates import Authority, Certified
from tests.deployment.manifests import containers, server, settings
from tests.processes.harness import Program, Programs, running_programs

pytestmark = pytest.mark.deploy
LISTENS = re.compile(r"answers health checks on \S+")
# A loopback address of its own, so that every port is the one that the manifests name.
ADDRESS = f"127.{1 + os.getpid() % 250}.18.1"


def start(programs: Programs, arguments: list[str]) -> Program:
    """Start a container of the SQLite overlay. Its mounted folders are one temporary folder."""
    given = {}
    for variable, value in settings("sqlite").items():
        here = re.sub("/etc/cart-grpc/tls|/var/lib/cart-grpc", str(programs.folder), value)
        given[variable.removeprefix("CART_").lower()] = re.sub(r"\b(0\.0\.0\.0|127\.0\.0\.1)\b", ADDRESS, here)
    return programs.start(*arguments[1:], **given)


async def call(authority: Authority, caller: Certified | None) -> grpc.StatusCode:
    """Ask for a cart that does not exist."""
    names = (("grpc.ssl_target_name_override", "localhost"),)
    async with grpc.aio.secure_channel(f"{ADDRESS}:50051", authority.channel(caller), options=names) as channel:
        stub: cart_service_pb2_grpc.CartServiceAsyncStub = cart_service_pb2_grpc.CartServiceStub(channel)
        try:
            await stub.GetCart(cart_service_pb2.GetCartRequest(name="users/alice/carts/main"), timeout=10)
        except grpc.aio.AioRpcError as error:
            return error.code()
    return grpc.StatusCode.OK


async def succeeds(probe: str) -> bool:
    """Whether a probe of the manifests succeeds."""
    (container,) = server("sqlite")["spec"]["template"]["spec"]["containers"]
    asked = container[probe]["grpc"]
    async with grpc.aio.insecure_channel(f"{ADDRESS}:{asked['port']}") as channel:
        request = health_pb2.HealthCheckRequest(service=asked.get("service", ""))
        answer = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=10)  # type: ignore[attr-defined]
    serving: int = health_pb2.HealthCheckResponse.SERVING
    return bool(answer.status == serving)


async def test_the_containers_start_and_only_a_service_with_a_known_certificate_may_call(tmp_path: Path) -> None:
    authority = Authority()
    shown = authority.issue(x509.DNSName("localhost"))
    (migrate,), (serve,) = (
        [one["args"] for spec, one in containers("sqlite") if one["name"] == name] for name in ("migrate", "cart-grpc")
    )
    with running_programs(tmp_path) as programs:
        # Only the server has the certificates.
        assert await start(programs, migrate).ended(30) == 0
        for file, pem in {"tls.crt": shown.certificate, "tls.key": shown.key, "ca.crt": authority.pem}.items():
            (tmp_path / file).write_bytes(pem)
        await start(programs, serve).says(LISTENS)
        for name in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert await succeeds(name), name
        caller = authority.issue(x509.UniformResourceIdentifier("spiffe://shop.example/web"))
        stranger = authority.issue(x509.UniformResourceIdentifier("spiffe://shop.example/other"))
        assert await call(authority, caller) == grpc.StatusCode.NOT_FOUND
        assert await call(authority, stranger) == grpc.StatusCode.PERMISSION_DENIED
        assert await call(authority, None) == grpc.StatusCode.UNAVAILABLE
        assert await start(programs, ["cart-grpc", "reservations", "stats"]).ended(30) == 0
