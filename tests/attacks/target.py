"""A server in a process of its own that hostile clients attack, and its honest callers."""

import ssl
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import psutil
import trustme
from cartgrpc.v1 import cart_service_pb2_grpc

from tests.access.guarded import Files
from tests.authentication.issuer import make_token
from tests.processes.harness import LISTENS, Program, running_programs
from tests.processes.test_tls import SERVICES, port_of, variables
from tests.service.conftest import Replica

HONEST = "bob"
CART = f"users/{HONEST}/carts/default"


@dataclass(frozen=True)
class Target:
    """A server with TLS: `address` takes tokens, `service_address` takes certificates.

    `before` is its memory in bytes before the first attack.
    """

    program: Program
    files: Files
    address: str
    service_address: str
    before: int

    @property
    def memory(self) -> int:
        """Its resident memory now, in bytes."""
        return memory_of(self.program)

    def tls(self, shown: trustme.LeafCert | None = None) -> ssl.SSLContext:
        """A server as a client connects to it. The client shows the certificate `shown`."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.files.authority.configure_trust(context)
        context.set_alpn_protocols(["h2"])
        if shown:
            shown.configure_cert(context)
        return context

    def honest(self, user_id: str = HONEST) -> AbstractAsyncContextManager[Replica]:
        """A user with a connection and a token of its own."""
        token = grpc.access_token_call_credentials(make_token(user_id, expires_in=6_000))
        roots = grpc.ssl_channel_credentials(self.files.authority.cert_pem.bytes())
        return _connected(self.address, grpc.composite_channel_credentials(roots, token))

    def web(self, shown: trustme.LeafCert | None = None) -> AbstractAsyncContextManager[Replica]:
        """A service with a connection of its own, and by default with a certificate of its own."""
        shown = shown or self.files.web()
        key, chain = shown.private_key_pem.bytes(), shown.cert_chain_pems[0].bytes()
        credentials = grpc.ssl_channel_credentials(self.files.authority.cert_pem.bytes(), key, chain)
        return _connected(self.service_address, credentials)


@asynccontextmanager
async def _connected(address: str, credentials: grpc.ChannelCredentials) -> AsyncIterator[Replica]:
    port = port_of(address)
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.secure_channel(f"localhost:{port}", credentials, options=options) as channel:
        yield Replica(cart_service_pb2_grpc.CartServiceStub(channel), channel, port)


def memory_of(program: Program) -> int:
    """The resident memory of a program, in bytes."""
    resident: int = psutil.Process(program.pid).memory_info().rss
    return resident


@asynccontextmanager
async def running_target(
    folder: Path, *, max_files: int = 0, inherits_limits: bool = False, **settings: str
) -> AsyncIterator[Target]:
    """Start a server. It has answered a call of an honest user before its memory is measured.

    With `max_files`, it can open no more files. With `inherits_limits`, it has the tests' own limits.
    """
    files = Files(folder)
    chosen = {"reservation_url": "grpc://127.0.0.1:1", "admin_listen": "", **settings}
    with running_programs(folder) as programs:
        programs.preloaded = not (max_files or inherits_limits)
        program = programs.start("serve", **variables(files, **chosen))
        if max_files:
            # Long before its imports are done.
            psutil.Process(program.pid).rlimit(psutil.RLIMIT_NOFILE, (max_files, max_files))
        address = (await program.says(LISTENS))[1]
        service_address = (await program.says(SERVICES))[1]
        async with Target(program, files, address, service_address, 0).honest() as client:
            await client.add(cart=CART)
        yield Target(program, files, address, service_address, memory_of(program))
        assert programs.complaints() == []
