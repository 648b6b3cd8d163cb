"""The services on TLS ports that need identities, and callers with real tokens and certificates."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from cartgrpc.v1 import cart_admin_service_pb2_grpc, cart_service_pb2_grpc
from cryptography import x509
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2_grpc

from cart_grpc import app
from cart_grpc.admin import OperatorActions
from cart_grpc.authentication.caller import ADMIN_READ, ADMIN_WRITE, CARTS_ACT_AS, CARTS_READ, CARTS_WRITE
from cart_grpc.authentication.key_set import KeySet
from cart_grpc.authentication.key_sources import FileSource
from cart_grpc.authentication.services import Services
from cart_grpc.authentication.tokens import Tokens
from cart_grpc.rpc.access import Access, AccessByCertificate, AccessByToken
from cart_grpc.rpc.cart_admin_service import CartAdminService
from cart_grpc.rpc.cart_service import CartService
from cart_grpc.rpc.deadlines import Deadlines
from cart_grpc.rpc.endpoint import Guards
from cart_grpc.rpc.health import Health
from cart_grpc.rpc.methods import CART_SERVICE, HEALTH_AND_REFLECTION, METHODS, Method
from cart_grpc.rpc.permissions import PERMISSIONS
from cart_grpc.rpc.pipeline import Pipeline
from cart_grpc.rpc.receiving import Receiver
from cart_grpc.store.store import Store
from tests.authentication.issuer import AUDIENCE, ISSUER, make_token, signing_key, write_key_set
from tests.certificates import Authority
from tests.rpc.conftest import quiet_settings
from tests.rpc.refusal import Refusal, to_refusal
from tests.rpc.right import descriptor_of, path_of
from tests.rpc.serving import admitting, permissions_of, streams_with
from tests.store.writes import LIMITS

WEB = "spiffe://shop.example/web"
READER = "spiffe://shop.example/reader"
LONER = "spiffe://shop.example/loner"
JOBS = "jobs.shop.example"
OPERATOR = "spiffe://shop.example/operator"
AUDITOR = "spiffe://shop.example/auditor"
SERVICES = {
    WEB: frozenset({CARTS_READ, CARTS_WRITE, CARTS_ACT_AS}),
    READER: frozenset({CARTS_READ, CARTS_ACT_AS}),
    LONER: frozenset({CARTS_READ, CARTS_WRITE}),
    JOBS: frozenset({CARTS_WRITE, CARTS_ACT_AS}),
    OPERATOR: frozenset({ADMIN_READ, ADMIN_WRITE}),
    AUDITOR: frozenset({ADMIN_READ}),
}
Metadata = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Identity:
    """A caller: its connection, and the metadata that it sends with each call."""

    channel: grpc.aio.Channel
    metadata: Metadata = ()

    def begin(self, method: str, request: Any, timeout: float = 20) -> Any:
        """Start a call of a method, by its name as in `right`."""
        found = descriptor_of(method)
        kind: Any = self.channel.unary_stream if found.server_streaming else self.channel.unary_unary
        calling = kind(
            path_of(method),
            request_serializer=type(request).SerializeToString,
            response_deserializer=GetMessageClass(found.output_type).FromString,
        )
        return calling(request, timeout=timeout, metadata=self.metadata)

    async def call(self, method: str, request: Any) -> Any:
        """Call a method. Of a stream, return the first message."""
        call = self.begin(method, request)
        if not isinstance(call, grpc.aio.UnaryStreamCall):
            return await call
        first = await call.read()
        call.cancel()
        return first

    async def fail(self, method: str, request: Any) -> grpc.aio.AioRpcError:
        """Call a method that must refuse the request. Return the error as gRPC has it."""
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.call(method, request)
        return caught.value

    async def refuse(self, method: str, request: Any) -> Refusal:
        """Call a method that must refuse the request."""
        return to_refusal(await self.fail(method, request))


async def lacking_scope(identity: Identity, method: str, request: Message) -> str:
    """The scope that a caller lacks for a request; "" if it has all. The request may be refused for another reason."""
    try:
        await identity.call(method, request)
    except grpc.aio.AioRpcError as error:
        refusal = to_refusal(error)
        return refusal.info.metadata["scope"] if refusal.info.reason == "PERMISSION_DENIED" else ""
    return ""


class Shop:
    """CartService on a port for tokens and on a port for certificates, and CartAdminService. All share one store."""

    def __init__(self, stack: AsyncExitStack, store: Store, authority: Authority, tokens: Tokens) -> None:
        self.store = store
        self.authority = authority
        self.ports: dict[str, int] = {}
        self._stack = stack
        self.tokens = tokens
        self._admission = admitting()

    async def start(self) -> None:
        """Listen on all ports."""
        by_token, by_certificate = AccessByToken(self.tokens), AccessByCertificate(Services(SERVICES))
        for name, add, access in (
            ("tokens", self.add_carts, by_token),
            ("services", self.add_carts, by_certificate),
            ("operators", self.add_admin, by_certificate),
        ):
            served = secured(self.authority, add, access, admission=self._admission)
            self.ports[name] = await self._stack.enter_async_context(served)

    def add_carts(self, pipeline: Any) -> None:
        """Add CartService to a pipeline."""
        servicer = CartService(self.store, LIMITS, self._admission.park)
        cart_service_pb2_grpc.add_CartServiceServicer_to_server(servicer, pipeline)

    def add_admin(self, pipeline: Any) -> None:
        """Add CartAdminService to a pipeline."""
        servicer = CartAdminService(OperatorActions(self.store, LIMITS, None))
        cart_admin_service_pb2_grpc.add_CartAdminServiceServicer_to_server(servicer, pipeline)

    async def user(self, user_id: str = "alice", **token: Any) -> Identity:
        """A user with a token. The arguments are those of `make_token`."""
        return await self.sends(("authorization", f"Bearer {make_token(user_id, **token)}"))

    async def sends(self, *metadata: tuple[str, str]) -> Identity:
        """A caller of the port for tokens that sends this metadata."""
        return Identity(await self._connect("tokens"), metadata)

    async def service(self, *names: str, port: str = "services", metadata: Metadata = ()) -> Identity:
        """A service with these names in its certificate: URIs if they have `://`, else DNS names."""
        return await self.shows(*map(general_name, names), port=port, metadata=metadata)

    async def shows(
        self, *names: x509.GeneralName, common_name: str = "nobody", port: str = "services", metadata: Metadata = ()
    ) -> Identity:
        """A service that shows a certificate."""
        return Identity(await self._connect(port, *names, common_name=common_name), metadata)

    async def _connect(self, port: str, *names: x509.GeneralName, common_name: str = "nobody") -> grpc.aio.Channel:
        shown = None if port == "tokens" else self.authority.issue(*names, common_name=common_name)
        channel = grpc.aio.secure_channel(f"localhost:{self.ports[port]}", self.authority.channel(shown))
        await self._stack.enter_async_context(channel)
        return channel


def general_name(name: str) -> x509.GeneralName:
    """The subject alternative name of a service."""
    return x509.UniformResourceIdentifier(name) if "://" in name else x509.DNSName(name)


@asynccontextmanager
async def secured(
    authority: Authority,
    add: Callable[[Any], None],
    access: Access,
    *,
    rows: Sequence[Method] = METHODS[CART_SERVICE],
    timeout: float = 20,
    **guards: Any,
) -> AsyncIterator[int]:
    """A port with TLS, for services with certificates or for tokens: health, and what `add` adds.

    `rows` are those of CartService.
    """
    server = grpc.aio.server()
    shared = {"streams": streams_with(), "access": access, **guards}
    methods, permissions = {**METHODS, CART_SERVICE: rows}, {**PERMISSIONS, **permissions_of(rows)}
    add(Pipeline(server, methods, permissions, Guards(Deadlines(timeout), Receiver(1_000), **shared)))
    health: Any = Pipeline(
        server, HEALTH_AND_REFLECTION, PERMISSIONS, Guards(Deadlines(timeout), Receiver(1_000), streams_with())
    )
    health_pb2_grpc.add_HealthServicer_to_server(Health(""), health)
    asks = isinstance(access, AccessByCertificate)
    port = server.add_secure_port("localhost:0", authority.server(asks=asks))
    await server.start()
    try:
        yield port
    finally:
        await server.stop(0)


@asynccontextmanager
async def known_tokens(file: Path) -> AsyncIterator[Tokens]:
    """Tokens of the tests' issuer, whose key set is in `file`."""
    source = FileSource(write_key_set(file, signing_key("ES256")))
    async with KeySet(source, {"ES256"}) as keys:
        await keys.load()
        yield Tokens(keys, issuer=ISSUER, audience=AUDIENCE, leeway=0.0)


@asynccontextmanager
async def open_shop(folder: Path) -> AsyncIterator[Shop]:
    """A shop on a new SQLite file."""
    async with AsyncExitStack() as stack:
        settings = quiet_settings(f"sqlite:///{folder}/cart.db")
        store = await stack.enter_async_context(app.running_store(settings))
        tokens = await stack.enter_async_context(known_tokens(folder / "keys.json"))
        shop = Shop(stack, store, Authority(), tokens)
        await shop.start()
        yield shop
