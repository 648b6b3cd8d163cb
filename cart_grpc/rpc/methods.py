"""The methods that a server offers, one row each. The pipeline serves a method according to its row."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from types import MappingProxyType
from typing import Any, Final

CART_SERVICE: Final = "cartgrpc.v1.CartService"
ADMIN_SERVICE: Final = "cartgrpc.v1.CartAdminService"


@dataclass(frozen=True, slots=True)
class Method:
    """One method.

    `resources` are the paths of the request fields that name the resources it touches, such as `item.name`; admission
    counts the call for the user in the first one. `waits`: the request has max_wait. `streams`: the response is a
    stream. `takes_stream`: the request is one, too.

    A method whose requests have no resource names has `owner` instead: it returns the id of the user whose cart the
    request is about; "" for none. `allows_nobody`: a caller without a token may call it, and is nobody.
    """

    name: str
    resources: tuple[str, ...] = ()
    writes: bool = False
    waits: bool = False
    streams: bool = False
    takes_stream: bool = False
    owner: Callable[[Any], str] | None = None
    allows_nobody: bool = False

    def user_of(self, request: Any) -> str:
        """Return the user id in the name of the first resource; "" if the request names no resource.

        The name is as the caller sent it: it need not be a valid one.
        """
        if self.owner:
            return self.owner(request)
        if not self.resources:
            return ""
        name: str = attrgetter(self.resources[0])(request)
        return name.partition("/")[2].partition("/")[0]


def _read(name: str, *resources: str) -> Method:
    return Method(name, resources)


def _write(name: str, *resources: str) -> Method:
    return Method(name, resources, writes=True, waits=True)


def _operate(name: str, *resources: str) -> Method:
    return Method(name, resources, writes=True)


METHODS: Final[Mapping[str, tuple[Method, ...]]] = MappingProxyType(
    {
        CART_SERVICE: (
            _write("AddItem", "parent"),
            _write("BatchAddItems", "parent"),
            _write("UpdateItem", "item.name"),
            _write("RemoveItem", "name"),
            _write("ClearCart", "name"),
            _write("CreateCart", "parent"),
            _write("UpdateCart", "cart.name"),
            _write("DeleteCart", "name"),
            _read("GetCart", "name"),
            _read("ListCarts", "parent"),
            _write("RetryReservation", "name"),
            _write("ReplaceItems", "name"),
            Method("WatchCart", ("name",), streams=True),
            _write("MergeCarts", "name", "source"),
            _write("BeginCheckout", "name"),
            _write("CompleteCheckout", "name"),
            _write("CancelCheckout", "name"),
            _read("GetCheckout", "name"),
            _read("ListCheckouts", "parent"),
        ),
        ADMIN_SERVICE: (
            _read("ListReservations"),
            _read("GetReservation", "name"),
            _operate("RetryReservation", "name"),
            _operate("ReleaseReservation", "name"),
            _read("GetReservationStats"),
            _read("GetProcessStats"),
            _operate("PauseReservations"),
            _operate("ResumeReservations"),
            _read("ListCarts"),
            _read("ListCheckouts"),
            _read("GetCheckout", "name"),
            _operate("EndCheckout", "name"),
            _operate("EraseUser", "name"),
        ),
    }
)
_HEALTH: Final = "grpc.health.v1.Health"
_REFLECTION: Final = (Method("ServerReflectionInfo", streams=True, takes_stream=True),)
# What a server offers beside its own service. A method of these services that has no row is UNIMPLEMENTED.
CHECK_ONLY: Final[Mapping[str, tuple[Method, ...]]] = MappingProxyType({_HEALTH: (Method("Check"),)})
HEALTH_ONLY: Final[Mapping[str, tuple[Method, ...]]] = MappingProxyType(
    {
        _HEALTH: (
            Method("Check"),
            # Not in every version of grpc_health.
            Method("List"),
            Method("Watch", streams=True),
        )
    }
)
HEALTH_AND_REFLECTION: Final[Mapping[str, tuple[Method, ...]]] = MappingProxyType(
    {
        **HEALTH_ONLY,
        "grpc.reflection.v1.ServerReflection": _REFLECTION,
        "grpc.reflection.v1alpha.ServerReflection": _REFLECTION,
    }
)
