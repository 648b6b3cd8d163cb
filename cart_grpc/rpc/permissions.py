"""The scope that each method needs, and the resources that a caller may name."""

from collections.abc import Callable, Mapping
from operator import attrgetter
from types import MappingProxyType
from typing import Any, Final

from cart_grpc.authentication.caller import (
    ADMIN_READ,
    ADMIN_WRITE,
    CARTS_ACT_AS,
    CARTS_READ,
    CARTS_WRITE,
    NOBODY,
    Caller,
)
from cart_grpc.authentication.refusals import PermissionDenied
from cart_grpc.rpc.methods import ADMIN_SERVICE, CART_SERVICE, Method

# Anyone may call the method, also without an identity.
PUBLIC: Final = ""
PERMISSIONS: Final[Mapping[str, Mapping[str, str]]] = MappingProxyType(
    {
        CART_SERVICE: {
            "AddItem": CARTS_WRITE,
            "BatchAddItems": CARTS_WRITE,
            "UpdateItem": CARTS_WRITE,
            "RemoveItem": CARTS_WRITE,
            "ClearCart": CARTS_WRITE,
            "CreateCart": CARTS_WRITE,
            "UpdateCart": CARTS_WRITE,
            "DeleteCart": CARTS_WRITE,
            "GetCart": CARTS_READ,
            "ListCarts": CARTS_READ,
            "RetryReservation": CARTS_WRITE,
            "ReplaceItems": CARTS_WRITE,
            "WatchCart": CARTS_READ,
            "MergeCarts": CARTS_WRITE,
            "BeginCheckout": CARTS_WRITE,
            "CompleteCheckout": CARTS_WRITE,
            "CancelCheckout": CARTS_WRITE,
            "GetCheckout": CARTS_READ,
            "ListCheckouts": CARTS_READ,
        },
        ADMIN_SERVICE: {
            "ListReservations": ADMIN_READ,
            "GetReservation": ADMIN_READ,
            "RetryReservation": ADMIN_WRITE,
            "ReleaseReservation": ADMIN_WRITE,
            "GetReservationStats": ADMIN_READ,
            "GetProcessStats": ADMIN_READ,
            "PauseReservations": ADMIN_WRITE,
            "ResumeReservations": ADMIN_WRITE,
            "ListCarts": ADMIN_READ,
            "ListCheckouts": ADMIN_READ,
            "GetCheckout": ADMIN_READ,
            "EndCheckout": ADMIN_WRITE,
            "EraseUser": ADMIN_WRITE,
        },
        "grpc.health.v1.Health": {"Check": PUBLIC, "List": PUBLIC, "Watch": PUBLIC},
        "grpc.reflection.v1.ServerReflection": {"ServerReflectionInfo": PUBLIC},
        "grpc.reflection.v1alpha.ServerReflection": {"ServerReflectionInfo": PUBLIC},
    }
)
# A method with one of these scopes reaches only the caller's own resources, unless the caller has carts.act-as. The
# methods of operators name resources of every user.
_OF_OWNERS: Final = frozenset({CARTS_READ, CARTS_WRITE})


def check_of(method: Method, scope: str) -> Callable[[Caller, Any], None]:
    """Return the check of one method: it raises PermissionDenied unless a caller may make a request.

    The caller needs the scope. Without carts.act-as, every name in the request must begin with `users/{user}`, where
    `{user}` is the caller's own id, byte for byte. A name that is missing or malformed is refused in the same way, so
    the answer depends on nothing but the request and the caller. If the method has an owner instead of names, the owner
    must be the caller.
    """
    fields = [(field, attrgetter(field)) for field in method.resources] if scope in _OF_OWNERS else []

    owner, allows_nobody = method.owner, method.allows_nobody

    def check(caller: Caller, request: Any) -> None:
        if allows_nobody and caller is NOBODY:
            return
        if scope not in caller.scopes:
            raise PermissionDenied(scope)
        if CARTS_ACT_AS in caller.scopes:
            return
        for field, name_in in fields:
            if not caller.owns(name_in(request)):
                raise PermissionDenied(CARTS_ACT_AS, field)
        if owner and (user_id := owner(request)) and user_id != caller.user_id:
            raise PermissionDenied(CARTS_ACT_AS, "user_id")

    return check
