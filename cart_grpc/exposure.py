"""Which ports a process opens, how their callers prove who they are, and which settings are refused at start.

Pure functions of the settings. Nothing is read, and no port is opened.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

from cart_grpc.addresses import host_of, is_loopback
from cart_grpc.authentication.caller import ADMIN_READ, ADMIN_WRITE, CARTS_READ, CARTS_WRITE
from cart_grpc.settings import Settings
from cart_grpc.startup import StartupError

# With TLS on the callers' port, whatever has no certificates asks here: `cart-grpc health`, the image's health check.
DEFAULT_HEALTH_ADDRESS: Final = "127.0.0.1:50059"
# Workers share these ports. Only the first worker listens on the other.
SHARED: Final = ("listen", "service_listen", "health_listen")


@dataclass(frozen=True, slots=True)
class Port:
    """A port of a process. `setting` has its address.

    `identity` is how a caller proves who it is; "" if it need not. With `tls`, the port shows a certificate.
    """

    setting: Literal["listen", "service_listen", "admin_listen", "health_listen"]
    address: str
    identity: Literal["", "token", "certificate"] = ""
    tls: bool = False


def find_ports(settings: Settings, *, serve: bool) -> tuple[Port, ...]:
    """Return the ports that a process opens; without `serve`, not those of callers.

    Raises StartupError if settings are missing or contradict each other, or if a stranger could do harm.
    """
    for fault in _faults(settings, serve=serve):
        raise StartupError(fault)
    ports = []
    if serve and settings.listen:
        identity: Literal["", "token"] = "token" if settings.token_keys else ""
        ports.append(Port("listen", settings.listen, identity, tls=bool(settings.tls_cert_file)))
    if serve and settings.service_listen:
        ports.append(Port("service_listen", settings.service_listen, "certificate", tls=True))
    if settings.admin_listen and is_local(settings.admin_listen):
        ports.append(Port("admin_listen", settings.admin_listen))
    elif settings.admin_listen:
        ports.append(Port("admin_listen", settings.admin_listen, "certificate", tls=True))
    if settings.health_listen or (serve and health_address(settings) != settings.listen):
        ports.append(Port("health_listen", health_address(settings)))
    return tuple(ports)


def find_risks(ports: Iterable[Port]) -> list[str]:
    """Return a line for each risk that is allowed but should be known."""
    return [
        f"{_variable(port)}: tokens cross the network unencrypted, because CART_TLS_CERT_FILE is not set; "
        "this is safe only behind a proxy on this machine that ends TLS"
        for port in ports
        if port.identity == "token" and not port.tls and not is_local(port.address)
    ]


def health_address(settings: Settings) -> str:
    """Return the address of the plaintext port at which a process that serves answers health checks."""
    if settings.health_listen:
        return settings.health_listen
    return DEFAULT_HEALTH_ADDRESS if settings.tls_cert_file or not settings.listen else settings.listen


def offers_reflection(settings: Settings) -> bool:
    """Whether the servers offer reflection."""
    if settings.reflection == "auto":
        return not (settings.token_keys or settings.services)
    return settings.reflection == "on"


def is_local(address: str) -> bool:
    """Whether only this machine can reach HOST:PORT. A name other than localhost counts as reachable by others."""
    return is_loopback(host_of(address))


def _variable(port: Port) -> str:
    return f"CART_{port.setting.upper()}"


def _faults(settings: Settings, *, serve: bool) -> Iterator[str]:
    """Yield a line for each reason not to start, the most basic first. A line begins with the setting at fault."""
    yield from _faults_of_files(settings)
    yield from _faults_of_tokens(settings)
    yield from _faults_of_services(settings)
    if serve:
        yield from _faults_of_callers_port(settings)
    if settings.admin_listen and not is_local(settings.admin_listen):
        yield from _faults_of_certificates_port(
            settings, "CART_ADMIN_LISTEN is beyond loopback", {ADMIN_READ, ADMIN_WRITE}
        )
    if settings.service_listen:
        yield from _faults_of_certificates_port(settings, "CART_SERVICE_LISTEN is set", {CARTS_READ, CARTS_WRITE})


def _faults_of_files(settings: Settings) -> Iterator[str]:
    if settings.tls_key_file and not settings.tls_cert_file:
        yield "CART_TLS_CERT_FILE: must be set, because CART_TLS_KEY_FILE is"
    if settings.tls_cert_file and not settings.tls_key_file:
        yield "CART_TLS_KEY_FILE: must be set, because CART_TLS_CERT_FILE is"


def _faults_of_tokens(settings: Settings) -> Iterator[str]:
    if settings.token_keys:
        if not settings.token_issuer:
            yield "CART_TOKEN_ISSUER: must be set, because CART_TOKEN_KEYS is"
        if not settings.token_audience:
            yield "CART_TOKEN_AUDIENCE: must be set, because CART_TOKEN_KEYS is"
        if not settings.listen:
            yield "CART_LISTEN: must be set, because CART_TOKEN_KEYS is; no other port takes tokens"
    elif settings.token_issuer:
        yield "CART_TOKEN_KEYS: must be set, because CART_TOKEN_ISSUER is"
    elif settings.token_audience:
        yield "CART_TOKEN_KEYS: must be set, because CART_TOKEN_AUDIENCE is"


def _faults_of_services(settings: Settings) -> Iterator[str]:
    if settings.services and not settings.client_ca_file:
        yield "CART_CLIENT_CA_FILE: must be set, because CART_SERVICES is"
    if settings.client_ca_file and not settings.services:
        yield "CART_SERVICES: must be set, because CART_CLIENT_CA_FILE is"
    if settings.services and not settings.service_listen and is_local(settings.admin_listen or "localhost:0"):
        yield (
            "CART_SERVICES: needs CART_SERVICE_LISTEN, or CART_ADMIN_LISTEN beyond loopback; "
            "no other port asks for certificates"
        )


def _faults_of_callers_port(settings: Settings) -> Iterator[str]:
    allows_anyone = settings.allow_anyone_to_be_any_user
    if not settings.listen and not settings.service_listen:
        yield "CART_LISTEN: must be HOST:PORT, such as 127.0.0.1:50051, unless CART_SERVICE_LISTEN is set"
    if allows_anyone and settings.token_keys:
        yield "CART_ALLOW_ANYONE_TO_BE_ANY_USER: must be false, because CART_TOKEN_KEYS is set"
    if settings.listen and not (settings.token_keys or allows_anyone or is_local(settings.listen)):
        yield (
            f"CART_LISTEN: {settings.listen} is beyond loopback, and every caller could be any user; set "
            "CART_TOKEN_KEYS, so that callers need a token, or CART_ALLOW_ANYONE_TO_BE_ANY_USER=true, if all who reach "
            "the port may be any user"
        )


def _faults_of_certificates_port(settings: Settings, reason: str, scopes: set[str]) -> Iterator[str]:
    """The faults of a port that asks for certificates. Its methods need one of `scopes`."""
    for variable, value in (
        ("CART_TLS_CERT_FILE", settings.tls_cert_file),
        ("CART_CLIENT_CA_FILE", settings.client_ca_file),
        ("CART_SERVICES", settings.services),
    ):
        if not value:
            yield f"{variable}: must be set, because {reason}"
    if not any(granted & scopes for granted in settings.services.values()):
        yield f"CART_SERVICES: must give a service {' or '.join(sorted(scopes))}, because {reason}"
