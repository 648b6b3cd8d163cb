"""The names and attributes of spans of calls to the Reservation API, by the semantic conventions for its transport."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self
from urllib.parse import urlsplit

_SERVICE: Final = "cartgrpc.reservation.v1.ReservationService"
_METHODS: Final = (f"{_SERVICE}/ApplyReservation", f"{_SERVICE}/BatchApplyReservations")
_PATHS: Final = (("PUT", "/v1/reservations/{reservation_id}"), ("POST", "/v1/reservations:batchApply"))


@dataclass(frozen=True, slots=True)
class AttemptNames:
    """The name and the attributes of a single call and of a batch, for one Reservation API."""

    single: tuple[str, Mapping[str, str | int]]
    batch: tuple[str, Mapping[str, str | int]]

    @classmethod
    def at(cls, url: str) -> Self:
        """Return those for the API at `url`, which is checked. `basic` needs several requests, in one span."""
        parts = urlsplit(url)
        server: dict[str, str | int] = {"server.address": parts.hostname or ""}
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme.removeprefix("basic+"))
        if port:
            server["server.port"] = port
        if parts.scheme.startswith("grpc"):
            of_rpc = ((name, {"rpc.system.name": "grpc", "rpc.method": name, **server}) for name in _METHODS)
            return cls(*of_rpc)
        if parts.scheme.startswith("basic+"):
            return cls(("basic", server), ("basic", server))
        prefix = parts.path.rstrip("/")
        of_http = (
            (f"{method} {prefix}{path}", {"http.request.method": method, "url.template": prefix + path, **server})
            for method, path in _PATHS
        )
        return cls(*of_http)

    def of(self, *, is_batch: bool) -> tuple[str, Mapping[str, str | int]]:
        """Return the name and the attributes of a call."""
        return self.batch if is_batch else self.single

    def of_failure(self, code: str) -> Mapping[str, str | int]:
        """Return the attributes of a failure, beside `error.type`. `code` is that of NoAnswerError."""
        if code.startswith("HTTP_"):
            return {"http.response.status_code": int(code.removeprefix("HTTP_"))}
        return {"rpc.response.status_code": code} if "rpc.method" in self.single[1] else {}
