"""A server with every kind of port, and channels to it: the files, settings and certificates that they need."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import trustme
from cartgrpc.v1 import cart_service_pb2

from cart_grpc import app
from cart_grpc.settings import Settings
from tests.authentication.issuer import AUDIENCE, ISSUER, make_token, signing_key, write_key_set
from tests.pem import PemFolder, issue, new_authority

WEB = "web.example"
OPERATOR = "operator.example"
SERVICES = {WEB: ["carts.read", "carts.write", "carts.act-as"], OPERATOR: ["admin.read"]}
CART = "users/alice/carts/default"
# The operators' port asks for certificates only if it is beyond loopback.
BEYOND = "0.0.0.0:0"


class Files(PemFolder):
    """The files of a server: its certificate, the authority of its callers, and the keys of their tokens."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.authority = new_authority()
        self.callers = new_authority()
        self.write_identity("server", issue(self.authority))
        self.write_authorities("callers.pem", self.callers)
        write_key_set(folder / "keys.json", signing_key("ES256"))

    def settings(self, **changes: Any) -> Settings:
        """Settings for every kind of port, without a Reservation API."""
        defaults: dict[str, Any] = {
            "listen": "127.0.0.1:0",
            "service_listen": "127.0.0.1:0",
            "admin_listen": BEYOND,
            "health_listen": "127.0.0.1:0",
            "tls_cert_file": str(self.folder / "server.pem"),
            "tls_key_file": str(self.folder / "server.key"),
            "client_ca_file": str(self.folder / "callers.pem"),
            "services": SERVICES,
            "token_keys": str(self.folder / "keys.json"),
            "token_issuer": ISSUER,
            "token_audience": AUDIENCE,
            "database_url": f"sqlite:///{self.folder}/cart.db",
            "lame_duck": 0.0,
            "shutdown_grace": 0.5,
        }
        return Settings(**{**defaults, **changes})

    def open(self, port: int, caller: trustme.LeafCert | None = None, *, trusts: trustme.CA | None = None) -> Any:
        """Open a channel with TLS and a connection of its own. `caller` is the certificate that it shows."""
        key = chain = None
        if caller:
            key, chain = caller.private_key_pem.bytes(), caller.cert_chain_pems[0].bytes()
        roots = (trusts or self.authority).cert_pem.bytes()
        credentials = grpc.ssl_channel_credentials(roots, key, chain)
        options = [("grpc.use_local_subchannel_pool", 1)]
        return grpc.aio.secure_channel(f"localhost:{port}", credentials, options=options)

    def web(self, **changes: Any) -> trustme.LeafCert:
        """Issue a certificate for the service `WEB`."""
        return issue(self.callers, WEB, **changes)


@dataclass(frozen=True)
class Guarded:
    """A running server."""

    files: Files
    ports: app.Ports


@asynccontextmanager
async def running(files: Files, **changes: Any) -> AsyncIterator[Guarded]:
    async with app.running(files.settings(**changes), serve=True, reconcile=False) as ports:
        yield Guarded(files, ports)


async def add(channel: Any, token: str = "") -> int:
    """Call AddItem; return the item's quantity."""
    request = cart_service_pb2.AddItemRequest(parent=CART)
    request.item.sku = "tea"
    call = channel.unary_unary(
        "/cartgrpc.v1.CartService/AddItem",
        cart_service_pb2.AddItemRequest.SerializeToString,
        cart_service_pb2.AddItemResponse.FromString,
    )
    answer = await call(request, timeout=20, metadata=bearing(token))
    return int(answer.item.quantity)


async def operate(channel: Any) -> bytes:
    """Call the operators' GetReservationStats; return the encoded answer."""
    answer: bytes = await channel.unary_unary("/cartgrpc.v1.CartAdminService/GetReservationStats")(b"", timeout=20)
    return answer


def bearing(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),) if token else ()


def alices_token() -> str:
    return make_token("alice", key=signing_key("ES256"))
