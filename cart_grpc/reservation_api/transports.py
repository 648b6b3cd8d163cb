"""From a URL to a ReservationApi: the one place that knows which transports there are."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from cart_grpc.reservation_api.api import AuditableApi
from cart_grpc.reservation_api.grpc_api import GrpcReservationApi

if TYPE_CHECKING:
    from cart_grpc.reservation_api.basic_api import BasicReservationApi
    from cart_grpc.reservation_api.http_client import HttpClient

_WANTED: Final = (
    "it should be grpc://HOST:PORT, grpcs://HOST:PORT, http://HOST:PORT[/PREFIX] or https://HOST:PORT[/PREFIX], or "
    "basic+http://HOST:PORT[/PREFIX] or basic+https://HOST:PORT[/PREFIX] for the contract with POST and GET"
)
_SCHEMES: Final = frozenset({"grpc", "grpcs", "http", "https", "basic+http", "basic+https"})


@dataclass(frozen=True, slots=True)
class _Endpoint:
    scheme: str
    authority: str
    prefix: str
    basic: bool

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.authority}{self.prefix}"


def check_url(url: str) -> str:
    """Return `url` as it is if `connect` takes it. Raises ValueError, which says what is wrong and what is right."""
    _to_endpoint(url)
    return url


def connect(
    url: str, *, max_connections: int = 0, root_certificates: bytes | None = None
) -> "AuditableApi | BasicReservationApi":
    """Return a client of the Reservation API at `url`; nothing is sent yet. Call it inside the running loop.

    `max_connections` bounds the calls in flight over HTTP, 0 means no bound; `root_certificates` (PEM) replace those
    that are trusted by default for grpcs and https. Raises ValueError as `check_url` does.
    """
    endpoint = _to_endpoint(url)
    if endpoint.scheme in ("grpc", "grpcs"):
        return GrpcReservationApi(
            endpoint.authority, secure=endpoint.scheme == "grpcs", root_certificates=root_certificates
        )
    # aiohttp takes a tenth of the time that a server takes to start, and most need none.
    from cart_grpc.reservation_api.basic_api import BasicReservationApi  # noqa: PLC0415
    from cart_grpc.reservation_api.http_api import HttpReservationApi  # noqa: PLC0415

    if endpoint.basic:
        return BasicReservationApi(endpoint.url, _http_client(max_connections, root_certificates))
    return HttpReservationApi(endpoint.url, _http_client(max_connections, root_certificates))


def _http_client(max_connections: int, root_certificates: bytes | None) -> "HttpClient":
    from cart_grpc.reservation_api.http_client import HttpClient  # noqa: PLC0415 - see connect

    return HttpClient(
        clock=lambda: time.time_ns() // 1000, max_connections=max_connections, root_certificates=root_certificates
    )


def _to_endpoint(url: str) -> _Endpoint:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"{error}; {_WANTED}") from None
    if any(not letter.isprintable() or letter.isspace() for letter in url):
        raise ValueError(f"it has spaces or control characters; {_WANTED}")
    if parts.scheme not in _SCHEMES:
        raise ValueError(f"the scheme is {parts.scheme or 'missing'!r}; {_WANTED}")
    if not host:
        raise ValueError(f"the host is missing; {_WANTED}")
    if parts.username is not None or parts.password is not None:
        raise ValueError(f"it holds a user or a password, which are not used; {_WANTED}")
    if parts.query or parts.fragment:
        raise ValueError(f"it has a query or a fragment; {_WANTED}")
    if port == 0 or (port is None and parts.scheme.startswith("grpc")):
        raise ValueError(f"the port is missing; {_WANTED}")
    prefix = parts.path.rstrip("/")
    if prefix and parts.scheme.startswith("grpc"):
        raise ValueError(f"a gRPC address has no path; {_WANTED}")
    name = f"[{host}]" if ":" in host else host
    scheme = parts.scheme.removeprefix("basic+")
    return _Endpoint(scheme, name if port is None else f"{name}:{port}", prefix, basic=scheme != parts.scheme)
