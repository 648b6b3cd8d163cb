"""From a URL to a client of the Reservation API. This is the only place that knows all transports."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from cart_grpc.reservation_api.api import AuditableApi
from cart_grpc.reservation_api.credentials import NO_FILES, CredentialFiles, reloaded_headers
from cart_grpc.reservation_api.grpc_api import GrpcReservationApi
from cart_grpc.tls.reloaded_files import Reloaded

if TYPE_CHECKING:
    from cart_grpc.reservation_api.basic_api import BasicReservationApi

_HINT: Final = (
    "it must be grpc://HOST:PORT, grpcs://HOST:PORT, http://HOST:PORT[/PREFIX] or https://HOST:PORT[/PREFIX], or "
    "basic+http://HOST:PORT[/PREFIX] or basic+https://HOST:PORT[/PREFIX] for the contract with POST and GET"
)
_SCHEMES: Final = frozenset({"grpc", "grpcs", "http", "https", "basic+http", "basic+https"})


@dataclass(frozen=True, slots=True)
class _Endpoint:
    scheme: str
    host: str
    authority: str
    prefix: str
    basic: bool

    @property
    def secure(self) -> bool:
        return self.scheme in ("grpcs", "https")

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.authority}{self.prefix}"


def check_url(url: str, files: CredentialFiles = NO_FILES) -> str:
    """Return `url` unchanged if `connect` accepts it with `files`. Reads no file.

    Raises ValueError, which names the fault and valid forms.
    """
    endpoint = _to_endpoint(url)
    files.check(secure=endpoint.secure, host=endpoint.host)
    return url


def connect(url: str, files: CredentialFiles = NO_FILES) -> "AuditableApi | BasicReservationApi":
    """Return a client of the Reservation API at `url`. Sends nothing yet; call it inside the running loop.

    Raises ValueError as `check_url` does, and if `files` do not fit the URL. Raises FileError if a file cannot be used.
    """
    endpoint = _to_endpoint(url)
    files.check(secure=endpoint.secure, host=endpoint.host)
    headers = reloaded_headers(files.token)
    if endpoint.scheme in ("grpc", "grpcs"):
        credentials = Reloaded(files.tls.named, files.tls.to_credentials).get if endpoint.secure else lambda: None
        return GrpcReservationApi(endpoint.authority, credentials=credentials, headers=headers)
    # Imported here because aiohttp takes a tenth of a server's start time, and most servers use gRPC.
    from cart_grpc.reservation_api.basic_api import BasicReservationApi  # noqa: PLC0415
    from cart_grpc.reservation_api.http_api import HttpReservationApi  # noqa: PLC0415
    from cart_grpc.reservation_api.http_client import HttpClient  # noqa: PLC0415

    context = Reloaded(files.tls.named, files.tls.to_context).get if endpoint.secure else lambda: True
    client = HttpClient(clock=lambda: time.time_ns() // 1000, context=context, headers=headers)
    if endpoint.basic:
        return BasicReservationApi(endpoint.url, client)
    return HttpReservationApi(endpoint.url, client)


def _to_endpoint(url: str) -> _Endpoint:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        # The error quotes the URL, which may contain a password.
        raise ValueError(f"the host or the port is malformed; {_HINT}") from None
    if any(not letter.isprintable() or letter.isspace() for letter in url):
        raise ValueError(f"it contains spaces or control characters; {_HINT}")
    if parts.scheme not in _SCHEMES:
        raise ValueError(f"the scheme is missing or unknown; {_HINT}")
    if not host:
        raise ValueError(f"the host is missing; {_HINT}")
    if parts.username is not None or parts.password is not None:
        raise ValueError(f"it contains a user or a password, which are not supported; {_HINT}")
    if parts.query or parts.fragment:
        raise ValueError(f"it contains a query or a fragment; {_HINT}")
    if port == 0 or (port is None and parts.scheme.startswith("grpc")):
        raise ValueError(f"the port is missing; {_HINT}")
    prefix = parts.path.rstrip("/")
    if prefix and parts.scheme.startswith("grpc"):
        raise ValueError(f"a gRPC address has no path; {_HINT}")
    name = f"[{host}]" if ":" in host else host
    scheme = parts.scheme.removeprefix("basic+")
    authority = name if port is None else f"{name}:{port}"
    return _Endpoint(scheme, host, authority, prefix, basic=scheme != parts.scheme)
