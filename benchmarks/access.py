"""The cost of identities: server CPU of AddItem without one, with a token, with TLS and a token, and with mutual TLS.

Each user has a token and a cart. All tokens have been verified before the rounds begin, so a round measures what each
further call costs. The client is Python's: its own CPU does not count. The reconciler is paused.
"""

import asyncio
import functools
import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

import grpc
from cartgrpc.v1 import cart_pb2, cart_service_pb2_grpc
from cartgrpc.v1 import cart_service_pb2 as pb
from cryptography import x509

from benchmarks.plan import SKUS, Plan
from benchmarks.programs import SERVICES, Json, Product, Testbed, interleave
from tests.authentication.issuer import AUDIENCE, ISSUER, make_token, write_key_set
from tests.authentication.issuer import signing_key as key_of
from tests.certificates import Authority

USERS: Final = 200
CHANNELS: Final = 4
IN_FLIGHT: Final = 16
SERVICE: Final = "spiffe://shop.example/web"
# The key sizes that issuers use most: an RSA signature is the cheapest to check.
ALGORITHM: Final = "RS256"


@dataclass(frozen=True)
class Client:
    """How a contender connects to its server, and the metadata of each user's calls."""

    product: Product
    address: str
    credentials: grpc.ChannelCredentials | None
    metadata: tuple[tuple[tuple[str, str], ...], ...]


def access(testbed: Testbed, database: str, plan: Plan) -> Json:
    """Measure AddItem with each kind of identity."""
    clients = _clients(testbed, database)
    try:
        return compare_adds(clients, plan)
    finally:
        for client in clients.values():
            client.product.program.stop()


def compare_adds(clients: Mapping[str, Client], plan: Plan) -> Json:
    """Measure AddItem with each client, in turns. A first round, which does not count, verifies each token."""
    for client in clients.values():
        asyncio.run(_load(client, 2 * USERS))
    # Long rounds, and many of them: a few per cent are to be seen.
    calls = int(5_000 * plan.seconds)
    contenders: dict[str, Callable[[], Json]] = {
        name: functools.partial(measure_adds, client, calls) for name, client in clients.items()
    }
    return dict(interleave(contenders, 3 * plan.rounds - 1))


def _clients(testbed: Testbed, database: str) -> dict[str, Client]:
    authority = Authority()
    files = _write_files(testbed.folder, authority)
    tls = authority.channel()
    mutual = authority.channel(authority.issue(x509.UniformResourceIdentifier(SERVICE)))
    key = key_of(ALGORITHM)
    tokens = tuple(
        (("authorization", f"Bearer {make_token(_user(n), key=key, expires_in=86_400)}"),) for n in range(USERS)
    )
    nothing = ((),) * USERS
    settings: dict[str, dict[str, Any]] = {
        "no identity": {},
        "token": files["token"],
        "TLS, token": files["token"] | files["tls"],
        "mutual TLS": files["tls"] | files["services"],
    }
    served = {name: testbed.serve(testbed.database(database), **chosen) for name, chosen in settings.items()}
    found = {}
    for name, product in served.items():
        is_mutual = name == "mutual TLS"
        address = product.program.says(SERVICES) if is_mutual else product.address
        credentials = {"TLS, token": tls, "mutual TLS": mutual}.get(name)
        found[name] = Client(product, address, credentials, tokens if "token" in name else nothing)
    return found


def _write_files(folder: Path, authority: Authority) -> dict[str, dict[str, str]]:
    """Write the certificates and the key set. Return the settings that name them."""
    shown = authority.issue(x509.IPAddress(ip_address("127.0.0.1")))
    (folder / "server.pem").write_bytes(shown.certificate)
    (folder / "server.key").write_bytes(shown.key)
    (folder / "ca.pem").write_bytes(authority.pem)
    keys = write_key_set(folder / "keys.json", key_of(ALGORITHM))
    return {
        "tls": {"CART_TLS_CERT_FILE": str(folder / "server.pem"), "CART_TLS_KEY_FILE": str(folder / "server.key"),
                "CART_HEALTH_LISTEN": "127.0.0.1:0"},
        "token": {"CART_TOKEN_KEYS": str(keys), "CART_TOKEN_ISSUER": ISSUER, "CART_TOKEN_AUDIENCE": AUDIENCE},
        "services": {"CART_SERVICE_LISTEN": "127.0.0.1:0", "CART_CLIENT_CA_FILE": str(folder / "ca.pem"),
                     "CART_SERVICES": f'{{"{SERVICE}": ["carts.write", "carts.act-as"]}}'},
    }  # fmt: skip


def measure_adds(client: Client, calls: int) -> Json:
    """Make `calls` AddItem calls. Return their rate, and the server's CPU time for each."""
    program = client.product.program
    cpu, started = program.cpu_seconds(), time.perf_counter()
    asyncio.run(_load(client, calls))
    took = time.perf_counter() - started
    return {"per_s": calls / took, "cpu_us": (program.cpu_seconds() - cpu) / calls * 1e6}


async def _load(client: Client, calls: int) -> None:
    """Make `calls` calls, IN_FLIGHT at a time. Raises AioRpcError if one fails."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [
        grpc.aio.secure_channel(client.address, client.credentials, options)
        if client.credentials
        else grpc.aio.insecure_channel(client.address, options)
        for _ in range(CHANNELS)
    ]
    numbers = iter(range(calls))

    async def caller(stub: "cart_service_pb2_grpc.CartServiceAsyncStub") -> None:
        for number in numbers:
            user = number % USERS
            item = cart_pb2.Item(sku=f"sku-{number % SKUS:06}", quantity=1)
            request = pb.AddItemRequest(parent=f"users/{_user(user)}/carts/main", item=item)
            await stub.AddItem(request, metadata=client.metadata[user], timeout=30)

    try:
        stubs = itertools.cycle(cart_service_pb2_grpc.CartServiceStub(channel) for channel in channels)
        await asyncio.gather(*(caller(next(stubs)) for _ in range(IN_FLIGHT)))
    finally:
        await asyncio.gather(*(channel.close() for channel in channels))


def _user(number: int) -> str:
    return f"u{number:07}"
