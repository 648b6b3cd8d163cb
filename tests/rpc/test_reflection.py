"""Reflection in both versions, and the methods that it lists: a client that found one there can call it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, MethodDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha import reflection_pb2

from cart_grpc import app
from cart_grpc.rpc.methods import ADMIN_SERVICE, CART_SERVICE
from cart_grpc.simulator.server import SimulatorConfig, SimulatorServer, make_simulator
from tests.rpc.conftest import quiet_settings
from tests.service.conftest import Replica

V1 = "grpc.reflection.v1.ServerReflection"
V1ALPHA = "grpc.reflection.v1alpha.ServerReflection"
HEALTH = "grpc.health.v1.Health"
VERSIONS = pytest.mark.parametrize("version", [V1, V1ALPHA])
SERVERS = pytest.mark.parametrize("which", ["callers", "operators", "simulator"])
OWN = {
    "callers": {CART_SERVICE},
    "operators": {ADMIN_SERVICE},
    "simulator": {"cartgrpc.reservation.v1.ReservationService", "cartgrpc.simulator.v1.SimulatorService"},
}
FILES = {
    CART_SERVICE: "cartgrpc/v1/cart_service.proto",
    ADMIN_SERVICE: "cartgrpc/v1/cart_admin_service.proto",
    "cartgrpc.reservation.v1.ReservationService": "cartgrpc/reservation/v1/reservation.proto",
    "cartgrpc.simulator.v1.SimulatorService": "cartgrpc/simulator/v1/simulator.proto",
}
Ask = reflection_pb2.ServerReflectionRequest
Answer = reflection_pb2.ServerReflectionResponse


@pytest.fixture(scope="module")
async def channels(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[dict[str, grpc.aio.Channel]]:
    """A channel to each kind of server."""
    url = f"sqlite:///{tmp_path_factory.mktemp('reflection')}/cart.db"
    settings = quiet_settings(url).with_changes(admin_listen="127.0.0.1:0")
    simulator = SimulatorServer(make_simulator(SimulatorConfig()))
    async with app.running(settings, serve=True, reconcile=False) as ports:
        simulated = await simulator.start("127.0.0.1:0", None)
        numbers = {"callers": ports.port, "operators": ports.admin_port, "simulator": simulated.grpc}
        opened = {name: grpc.aio.insecure_channel(f"127.0.0.1:{port}") for name, port in numbers.items()}
        yield opened
        for channel in opened.values():
            await channel.close()
        await simulator.stop(0)


@asynccontextmanager
async def reflecting(channel: grpc.aio.Channel, version: str) -> AsyncIterator[Any]:
    """A function that asks one question after the other on one stream."""
    method: Any = channel.stream_stream(f"/{version}/ServerReflectionInfo")
    call = method(timeout=20)

    async def ask(**question: Any) -> Answer:
        await call.write(Ask(**question).SerializeToString())
        return Answer.FromString(await call.read())

    yield ask
    await call.done_writing()
    assert await call.code() == grpc.StatusCode.OK


async def services(ask: Any) -> dict[str, list[MethodDescriptorProto]]:
    """The methods of every service that is listed, as their files say."""
    found = {}
    for service in (await ask(list_services="")).list_services_response.service:
        answer = await ask(file_containing_symbol=service.name)
        files = [FileDescriptorProto.FromString(one) for one in answer.file_descriptor_response.file_descriptor_proto]
        pool = DescriptorPool()
        # A file comes before those that it needs.
        for file in reversed(files):
            pool.Add(file)
        described: Any = pool.FindServiceByName(service.name)
        found[service.name] = list(described.methods)
    return found


@SERVERS
@VERSIONS
async def test_reflection_lists_and_describes_every_service_itself_included(
    version: str, which: str, channels: dict[str, grpc.aio.Channel]
) -> None:
    async with reflecting(channels[which], version) as ask:
        assert (await services(ask)).keys() == OWN[which] | {HEALTH, V1, V1ALPHA}


@SERVERS
async def test_every_listed_method_answers_without_an_error_of_the_server(
    which: str, channels: dict[str, grpc.aio.Channel]
) -> None:
    async with reflecting(channels[which], V1) as ask:
        found = await services(ask)
    codes = {}
    for service, methods in found.items():
        for method in methods:
            call: Any = channels[which].stream_stream(f"/{service}/{method.name}")
            streaming = call(timeout=20)
            await streaming.write(b"")
            try:
                # Health/Watch sends a status and goes on.
                await streaming.read()
                if not getattr(method, "server_streaming", False):
                    await streaming.read()
                streaming.cancel() if service == HEALTH and method.name == "Watch" else await streaming.done_writing()
            except grpc.aio.AioRpcError:
                pass
            codes[f"{service}/{method.name}"] = (await streaming.code()).name
    assert not {name: code for name, code in codes.items() if code in ("INTERNAL", "UNKNOWN", "UNIMPLEMENTED")}
    assert codes[f"{HEALTH}/List"] == codes[f"{HEALTH}/Check"] == codes[f"{V1}/ServerReflectionInfo"] == "OK"


@pytest.mark.parametrize("which", ["callers", "operators"])
async def test_a_port_describes_nothing_that_only_another_port_serves(
    which: str, channels: dict[str, grpc.aio.Channel]
) -> None:
    async with reflecting(channels[which], V1) as ask:
        for service, file in FILES.items():
            is_known = service in OWN[which]
            assert (await ask(file_containing_symbol=service)).HasField("error_response") != is_known
            assert (await ask(file_by_filename=file)).HasField("error_response") != is_known


@pytest.mark.parametrize(
    "question",
    [
        {"file_by_filename": "no/such.proto"},
        {"file_by_filename": "\0../\u202e"},
        {"file_containing_symbol": ""},
        {"file_containing_symbol": "no.Such"},
        {"all_extension_numbers_of_type": "no.Such"},
        {"file_containing_extension": {"containing_type": CART_SERVICE, "extension_number": -1}},
        {"file_containing_extension": {"containing_type": "cartgrpc.v1.Cart", "extension_number": -(2**31)}},
    ],
    ids=str,
)
@VERSIONS
async def test_a_question_about_something_unknown_is_answered(
    validator: Replica, version: str, question: dict[str, Any]
) -> None:
    async with reflecting(validator.channel, version) as ask:
        assert (await ask(**question)).error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
        assert (await ask(list_services="")).list_services_response.service


async def test_a_question_without_content_is_answered(validator: Replica) -> None:
    async with reflecting(validator.channel, V1) as ask:
        assert (await ask()).error_response.error_code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
