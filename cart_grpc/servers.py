"""The servers of a process, one for each port, and the identities that they check: tokens and certificates."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import grpc

from cart_grpc import parts
from cart_grpc.admin import OperatorActions
from cart_grpc.authentication.services import Services
from cart_grpc.background.reconciler import Reconciler
from cart_grpc.compat.services import demo_services
from cart_grpc.exposure import SHARED, Port, offers_reflection
from cart_grpc.logs import events
from cart_grpc.logs.log import Log
from cart_grpc.process import connection_room, running_task
from cart_grpc.rpc.access import Access, AccessByCertificate, AccessByToken
from cart_grpc.rpc.endpoint import NOT_OBSERVED, Observers
from cart_grpc.rpc.methods import ADMIN_SERVICE, CHECK_ONLY, HEALTH_AND_REFLECTION, HEALTH_ONLY
from cart_grpc.rpc.server import MAX_CONNECTIONS, Server
from cart_grpc.rpc.services import admin_service, cart_service, no_service
from cart_grpc.settings import Settings, find_file
from cart_grpc.startup import StartupError
from cart_grpc.store.store import Store
from cart_grpc.tls.reloaded_files import FileError
from cart_grpc.tls.server import ServerTls

log = Log(__name__)


@dataclass(frozen=True, slots=True)
class Identities:
    """How this process and its callers prove who they are. A part that no port needs is None."""

    tls: ServerTls | None
    tokens: AccessByToken | None
    certificates: AccessByCertificate | None

    def access(self, port: Port) -> Access | None:
        """Return how the callers of a port prove who they are; None if they need not."""
        return {"": None, "token": self.tokens, "certificate": self.certificates}[port.identity]

    def credentials(self, port: Port) -> grpc.ServerCredentials | None:
        """Return the TLS of a port; None for plaintext."""
        if self.tls is None or not port.tls:
            return None
        return self.tls.credentials(verify_callers=port.identity == "certificate")


@asynccontextmanager
async def open_identities(settings: Settings, ports: Sequence[Port]) -> AsyncIterator[Identities]:
    """Read the keys and certificates that the ports need, and keep them up to date. Raises StartupError."""
    kinds = {port.identity for port in ports}
    async with AsyncExitStack() as stack:
        tls = None
        if any(port.tls for port in ports):
            tls = _open_tls(settings, verify_callers="certificate" in kinds)
            await stack.enter_async_context(running_task(tls.run(), "tls-files"))
        tokens = await _open_tokens(settings, stack) if "token" in kinds else None
        certificates = AccessByCertificate(Services(settings.services)) if "certificate" in kinds else None
        yield Identities(tls, tokens, certificates)


def _open_tls(settings: Settings, *, verify_callers: bool) -> ServerTls:
    """Raises StartupError."""
    chain, key = (find_file(settings, setting) for setting in ("tls_cert_file", "tls_key_file"))
    assert chain  # noqa: S101 - find_ports has checked that
    assert key  # noqa: S101 - as well
    try:
        return ServerTls(chain, key, find_file(settings, "client_ca_file") if verify_callers else None)
    except FileError as error:
        raise StartupError(str(error)) from None


async def _open_tokens(settings: Settings, stack: AsyncExitStack) -> AccessByToken:
    """Raises StartupError if there is no key set in its file. A URL may answer later."""
    # Imported here because PyJWT is slow to import.
    from cart_grpc.authentication.key_set import KeySet  # noqa: PLC0415
    from cart_grpc.authentication.key_sources import FileSource, key_source  # noqa: PLC0415
    from cart_grpc.authentication.keys import KeysNotLoaded, parse_keys  # noqa: PLC0415
    from cart_grpc.authentication.tokens import Tokens  # noqa: PLC0415

    source = key_source(settings.token_keys)
    if isinstance(source, FileSource):
        try:
            parse_keys(await source.read(), settings.token_algorithms)
        except KeysNotLoaded as error:
            raise StartupError(f"CART_TOKEN_KEYS: {error}") from None
    keys = await stack.enter_async_context(KeySet(source, settings.token_algorithms))
    issuer, audience = settings.token_issuer, settings.token_audience
    return AccessByToken(Tokens(keys, issuer=issuer, audience=audience, leeway=settings.token_leeway))


def make_servers(
    settings: Settings,
    ports: Sequence[Port],
    identities: Identities,
    store: Store,
    reconciler: Reconciler | None,
    *,
    shares_ports: bool,
    observers: Observers = NOT_OBSERVED,
) -> dict[Port, Server]:
    """Return a server for each port. None listens yet. With `shares_ports`, other workers listen on the same ports.

    `observers` observe their calls.
    """
    limits = parts.limits(settings)
    demos = demo_services(settings.compat, store, limits)
    carts = cart_service(store, limits, parts.admission(settings), demos)
    operators = admin_service(OperatorActions(store, limits, reconciler))
    names = {"listen": carts.names, "service_listen": carts.names, "admin_listen": (ADMIN_SERVICE,)}
    health = no_service(*{name: None for port in ports for name in names.get(port.setting, ())})
    services = {"listen": carts, "service_listen": carts, "admin_listen": operators, "health_listen": health}
    room = connection_room(len(ports))
    if room < MAX_CONNECTIONS:
        text = "the limit of open files (ulimit -n) leaves room for %d connections at each port"
        log(events.FILES_SHORT, text, room)
    beside = HEALTH_AND_REFLECTION if offers_reflection(settings) else HEALTH_ONLY
    return {
        port: Server(
            services[port.setting],
            settings.call_timeout,
            access=identities.access(port),
            observers=observers,
            beside=CHECK_ONLY if port.setting == "health_listen" else beside,
            shares_port=shares_ports and port.setting in SHARED,
            max_connections=room,
        )
        for port in ports
    }
