"""TLS and tokens towards a Reservation API that requires them, over every transport."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import pytest
import trustme
from aiohttp import web
from cartgrpc.reservation.v1.reservation_pb2 import (
    BatchApplyReservationsResponse,
    ReservationError,
    ReservationResult,
)

from cart_grpc.protocol.reservation import Decision, Observed
from cart_grpc.reservation_api.api import BatchesUnsupported, NoAnswerError, ReservationApi
from cart_grpc.reservation_api.credentials import NO_FILES, CredentialFiles
from cart_grpc.reservation_api.http_client import HttpClient
from cart_grpc.reservation_api.transports import check_url, connect
from cart_grpc.simulator.access import Access
from cart_grpc.simulator.server import SimulatorConfig, SimulatorServer, make_simulator
from cart_grpc.simulator.simulator import Simulator
from cart_grpc.tls import reloaded_files
from cart_grpc.tls.client import TlsFiles
from cart_grpc.tls.reloaded_files import FileError, NamedFile, Reloaded
from tests.intents import hold
from tests.pem import PemFolder, issue, new_authority
from tests.reservation_api.hostile import Script, hostile_grpc, hostile_http
from tests.simulated_api import BatchesOfOne, no_answer

URLS = {
    "grpc": "grpcs://127.0.0.1:{grpc}",
    "http": "https://127.0.0.1:{http}",
    "basic": "basic+https://127.0.0.1:{http}/basic",
}
CALLS = [("grpc", "single"), ("grpc", "batch"), ("http", "single"), ("http", "batch"), ("basic", "single")]
SECRET = "hunter2"


@dataclass
class Pki:
    """The files of the API, with names that begin with `api`, and of its clients."""

    files: PemFolder
    authority: trustme.CA
    other: trustme.CA


@pytest.fixture(scope="module")
def authorities() -> tuple[trustme.CA, trustme.CA]:
    return new_authority(), new_authority()


@pytest.fixture
def pki(tmp_path: Path, authorities: tuple[trustme.CA, trustme.CA]) -> Pki:
    return Pki(PemFolder(tmp_path), *authorities)


@pytest.fixture(params=list(URLS))
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def simulator() -> Simulator:
    return make_simulator(SimulatorConfig(latency_us=0))


@pytest.fixture
def access(pki: Pki) -> Access:
    """The simulator's access: TLS only. The other access files are written, too."""
    certificate, key = pki.files.write_identity("api", issue(pki.authority))
    return Access(certificate, key)


@pytest.fixture
def tls(pki: Pki) -> TlsFiles:
    """The client's files: the API's authority."""
    return TlsFiles(pki.files.write_authorities("ca.pem", pki.authority))


@asynccontextmanager
async def serving(simulator: Simulator, access: Access, transport: str, port: int = 0) -> AsyncIterator[str]:
    """Serve the simulator and yield its URL."""
    server, address = SimulatorServer(simulator, access), f"127.0.0.1:{port}"
    ports = await server.start(*((address, None) if transport == "grpc" else (None, address)))
    try:
        yield URLS[transport].format(grpc=ports.grpc, http=ports.http)
    finally:
        await server.stop(0)


@asynccontextmanager
async def client(url: str, files: CredentialFiles) -> AsyncIterator[ReservationApi]:
    api = connect(url, files)
    try:
        yield api
    finally:
        await api.close()


async def is_held(api: ReservationApi) -> bool:
    answer = await api.apply(hold(1), timeout=10)
    return isinstance(answer, Decision) and answer.state is Observed.HELD


async def until_held(api: ReservationApi) -> None:
    """Call until there is an answer. Fails after 10 seconds."""
    async with asyncio.timeout(10):
        while True:
            try:
                assert await is_held(api)
            except NoAnswerError:
                continue
            return


async def test_an_api_with_a_certificate_of_a_private_authority_is_reached(
    simulator: Simulator, access: Access, tls: TlsFiles, transport: str
) -> None:
    async with serving(simulator, access, transport) as url, client(url, CredentialFiles(tls)) as api:
        assert await is_held(api)


@pytest.mark.parametrize(
    ("trusted", "shown", "cause"),
    [
        ("other", "good", "no authority that is trusted here has signed the server's certificate"),
        ("public", "good", "no authority that is trusted here has signed the server's certificate"),
        ("own", "expired", "the server's certificate has expired"),
        ("own", "another name", "the server's certificate has another name"),
    ],
)
async def test_an_api_that_cannot_prove_its_identity_gets_no_call(
    pki: Pki, simulator: Simulator, transport: str, trusted: str, shown: str, cause: str
) -> None:
    issued = {
        "good": lambda: issue(pki.authority),
        "expired": lambda: issue(pki.authority, expired=True),
        "another name": lambda: issue(pki.authority, "api.example"),
    }[shown]()
    known = {"own": [pki.authority], "other": [pki.other], "public": []}[trusted]
    files = CredentialFiles(TlsFiles(pki.files.write_authorities("ca.pem", *known) if known else None))
    access = Access(*pki.files.write_identity("api", issued))
    async with serving(simulator, access, transport) as url, client(url, files) as api:
        error = await no_answer(api, hold(1))
    assert (error.code, error.message, error.reached) == ("UNAVAILABLE", cause, False)
    assert simulator.call_count == 0


async def test_an_api_that_requires_a_client_certificate_gets_it(
    pki: Pki, simulator: Simulator, access: Access, tls: TlsFiles, transport: str
) -> None:
    closed = replace(access, authorities=pki.files.write_authorities("api-clients.pem", pki.other))
    identity = pki.files.write_identity("client", issue(pki.other, "cart.example"))
    async with serving(simulator, closed, transport) as url:
        async with client(url, CredentialFiles(TlsFiles(tls.authorities, *identity))) as api:
            assert await is_held(api)
        for wrong in ((None, None), pki.files.write_identity("stranger", issue(pki.authority))):
            async with client(url, CredentialFiles(TlsFiles(tls.authorities, *wrong))) as api:
                error = await no_answer(api, hold(1))
                assert (error.code, error.reached) == ("UNAVAILABLE", False)
                # Python's TLS may see no more than the end of the connection.
                assert transport != "grpc" or "a client certificate that it trusts" in error.message


async def test_a_client_without_tls_gets_no_answer_from_an_api_with_tls(
    simulator: Simulator, access: Access, transport: str
) -> None:
    async with serving(simulator, access, transport) as url:
        plain = url.replace("grpcs", "grpc").replace("https", "http")
        async with client(plain, NO_FILES) as api:
            assert (await no_answer(api, hold(1))).reached is not None
    assert simulator.call_count == 0


@pytest.mark.parametrize(("transport", "call"), CALLS)
async def test_every_call_has_the_token(
    pki: Pki, simulator: Simulator, access: Access, tls: TlsFiles, transport: str, call: str
) -> None:
    closed = replace(access, tokens=pki.files.write("api-tokens", "good\n"))
    token = pki.files.write("token", "good\r\n")
    async with serving(simulator, closed, transport) as url, client(url, CredentialFiles(tls, token)) as api:
        assert await is_held(BatchesOfOne(api) if call == "batch" else api)


async def test_a_call_with_a_wrong_token_or_without_one_is_no_answer_and_has_no_effect(
    pki: Pki, simulator: Simulator, access: Access, tls: TlsFiles, transport: str
) -> None:
    closed = replace(access, tokens=pki.files.write("api-tokens", "good"))
    async with serving(simulator, closed, transport) as url:
        for token in (None, pki.files.write("token", SECRET)):
            async with client(url, CredentialFiles(tls, token)) as api:
                error = await no_answer(api, hold(1))
            assert error.code == ("UNAUTHENTICATED" if transport == "grpc" else "HTTP_401")
            assert error.reached is False
            assert SECRET not in f"{error!r} {error.message}"
    assert simulator.call_count == 0


@pytest.fixture
def every_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the files at every call."""
    monkeypatch.setattr(reloaded_files, "CHECK_SECONDS", 0.0)


class Load:
    """Calls that go on until the block ends. None may fail."""

    def __init__(self, api: ReservationApi) -> None:
        self._api = api
        self._calls = 0
        self._counted = asyncio.Condition()

    async def until_calls_end(self, count: int = 20) -> None:
        """Wait until so many calls more have been answered."""
        async with self._counted:
            wanted = self._calls + count
            await self._counted.wait_for(lambda: self._calls >= wanted)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Load"]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._call()) for _ in range(4)]
            yield self
            for task in tasks:
                task.cancel()

    async def _call(self) -> None:
        while True:
            assert await is_held(self._api)
            async with self._counted:
                self._calls += 1
                self._counted.notify_all()


@pytest.mark.usefixtures("every_check")
@pytest.mark.parametrize(("transport", "call"), CALLS)
async def test_a_token_a_certificate_and_an_authority_are_replaced_under_load_without_a_failed_call(
    pki: Pki, simulator: Simulator, transport: str, call: str
) -> None:
    files = pki.files
    old, new = new_authority(), new_authority()
    access = Access(
        *files.write_identity("api", issue(old)),
        files.write_authorities("api-clients.pem", old),
        files.write("api-tokens", "old"),
    )
    identity = files.write_identity("client", issue(old, "cart.example"))
    credentials = CredentialFiles(
        TlsFiles(files.write_authorities("ca.pem", old), *identity), files.write("token", "old\n")
    )
    steps: list[Callable[[], object]] = [
        lambda: files.write("api-tokens", "old\nnew"),
        lambda: files.write("token", "new\n"),
        lambda: files.write_authorities("api-clients.pem", old, new),
        lambda: files.write_identity("client", issue(new, "cart.example")),
        lambda: files.write_authorities("ca.pem", old, new),
        lambda: files.write_identity("api", issue(new)),
        lambda: files.write_authorities("ca.pem", new),
    ]
    async with serving(simulator, access, transport) as url:
        api = connect(url, credentials)
        calls = BatchesOfOne(api) if call == "batch" else api
        async with Load(calls).running() as load:
            for step in steps:
                await load.until_calls_end()
                step()
            await load.until_calls_end()
            # From here on, the API accepts nothing old.
            files.write("api-tokens", "new")
            files.write_authorities("api-clients.pem", new)
            await load.until_calls_end()
    # The API restarts, so that every connection is new.
    restarted = make_simulator(SimulatorConfig(latency_us=0))
    async with serving(restarted, access, transport, port=urlsplit(url).port or 0):
        await until_held(calls)
    await api.close()


@pytest.mark.usefixtures("every_check")
async def test_broken_files_are_not_used(
    pki: Pki, simulator: Simulator, access: Access, tls: TlsFiles, transport: str, caplog: pytest.LogCaptureFixture
) -> None:
    closed = replace(access, tokens=pki.files.write("api-tokens", "good"))
    files = CredentialFiles(tls, pki.files.write("token", "good"))
    async with serving(simulator, closed, transport) as url, client(url, files) as api:
        pki.files.write("token", f"{SECRET}\n{SECRET}")
        pki.files.write("ca.pem", "nonsense")
        for _ in range(3):
            assert await is_held(api)
    assert len([line for line in caplog.messages if line.startswith("token: ")]) == 1
    assert len([line for line in caplog.messages if line.startswith("ca.pem: ")]) == 1
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    ("transport", "url"), [("grpc", "grpc://{}:1"), ("http", "http://{}:1"), ("b", "basic+http://{}:1")]
)
def test_a_token_goes_to_another_machine_by_tls_only(url: str, transport: str) -> None:
    token = CredentialFiles(token=NamedFile("CART_RESERVATION_TOKEN_FILE", "token"))
    for host in ("127.0.0.1", "127.1.2.3", "localhost", "[::1]"):
        check_url(url.format(host), token)
    for host in ("api.example", "10.0.0.7", "localhost.example", "128.0.0.1"):
        check_url(url.format(host))
        with pytest.raises(ValueError, match=r"^CART_RESERVATION_TOKEN_FILE needs a URL with TLS"):
            check_url(url.format(host), token)
        check_url(url.format(host).replace("http", "https").replace("grpc", "grpcs"), token)


def test_files_for_tls_need_a_url_with_tls() -> None:
    file = NamedFile("CART_RESERVATION_CA_FILE", "ca.pem")
    with pytest.raises(ValueError, match=r"^CART_RESERVATION_CA_FILE needs a URL with TLS: grpcs://"):
        check_url("grpc://127.0.0.1:1", CredentialFiles(TlsFiles(file)))


@pytest.mark.parametrize("broken", ["authorities", "certificate", "token"])
async def test_a_file_that_is_broken_at_the_start_is_refused(
    pki: Pki, tls: TlsFiles, transport: str, broken: str
) -> None:
    certificate, key = pki.files.write_identity("client", issue(pki.authority))
    files = CredentialFiles(TlsFiles(tls.authorities, certificate, key), pki.files.write("token", "good"))
    faulty: Any = {"authorities": tls.authorities, "certificate": certificate, "token": files.token}[broken]
    pki.files.write(faulty.name, SECRET + "\n" + SECRET)
    with pytest.raises(FileError) as refused:
        connect(URLS[transport].format(grpc=1, http=1), files)
    assert str(refused.value).startswith(f"{faulty.name}: ")
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("transport", ["grpc", "http"])
@pytest.mark.parametrize("code", [grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.INVALID_ARGUMENT])
async def test_an_api_that_repeats_the_token_in_an_error_does_not_get_it_into_ours(
    pki: Pki, transport: str, code: grpc.StatusCode
) -> None:
    token = pki.files.write("token", SECRET)
    async with hostile_grpc() if transport == "grpc" else hostile_http() as api_server:
        api_server.script = Script(code=code, text=f"the token {SECRET} is unknown", reason="x")
        async with client(api_server.url, CredentialFiles(token=token)) as api:
            try:
                found: list[object] = [await api.apply(hold(1), timeout=5)]
            except NoAnswerError as caught:
                found = [caught, caught.message, caught.__cause__, caught.__context__]
            with pytest.raises((NoAnswerError, BatchesUnsupported)) as refused:
                await BatchesOfOne(api).apply(hold(1), timeout=5)
            found += [refused.value, refused.value.__cause__, refused.value.__context__]
            intent = hold(1)
            error = ReservationError(code=code.value[0], message=f"the token {SECRET}")
            result = ReservationResult(reservation_id=intent.reservation_id, error=error)
            api_server.script = Script(messages=[BatchApplyReservationsResponse(results=[result])])
            found += [each async for each in api.apply_batch([intent], timeout=5)]
    assert "the token *******" in str(found)
    assert SECRET not in str(found)


@pytest.mark.usefixtures("every_check")
async def test_a_new_certificate_is_shown_on_a_new_connection_over_http(pki: Pki, tls: TlsFiles) -> None:
    """`test_connections` has the same for gRPC."""

    async def tell(request: web.Request) -> web.Response:
        assert request.transport is not None
        return web.json_response(request.transport.get_extra_info("peername")[1])

    app = web.Application()
    app.router.add_get("/", tell)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    certificate, key = pki.files.write_identity("api", issue(pki.authority))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate.path, key.path)
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    identity = pki.files.write_identity("client", issue(pki.other))
    files = TlsFiles(tls.authorities, *identity)
    http = HttpClient(clock=lambda: 0, context=Reloaded(files.named, files.to_context).get)

    async def port() -> Any:
        return (await http.call("GET", f"https://127.0.0.1:{runner.addresses[0][1]}/", timeout=10)).to_json()

    first = await port()
    assert await port() == first
    pki.files.write_identity("client", issue(pki.other))
    second = await port()
    assert second != first
    assert await port() == second
    await http.close()
    await runner.cleanup()
