"""Why a caller is refused before its request is looked at: it has no valid identity, or no permission.

CallRefused
├── Unauthenticated          the call has no valid token
│   ├── TokenMissing         no `authorization` metadata, or not the scheme Bearer
│   ├── TokenExpired         `exp` has passed
│   └── TokenInvalid         everything else; `fault` in the metadata says which rule the token breaks
└── PermissionDenied         the identity is valid, but it may not make this call
"""

from cart_grpc.carts.refusals import CallRefused


class Unauthenticated(CallRefused):
    """The call has no valid token. Nothing was looked up."""

    reason = "UNAUTHENTICATED"


class TokenMissing(Unauthenticated):
    """The call has no bearer token."""

    reason = "TOKEN_MISSING"

    def __init__(self) -> None:
        super().__init__("this port needs a token; send it in the metadata `authorization`, as `Bearer TOKEN`")


class TokenExpired(Unauthenticated):
    """The token has expired, before the call or during its stream."""

    reason = "TOKEN_EXPIRED"

    def __init__(self) -> None:
        super().__init__("the token has expired; get a new one and repeat the call")


class TokenInvalid(Unauthenticated):
    """The token breaks a rule. `fault` names the rule in UPPER_SNAKE_CASE, such as SIGNATURE or AUDIENCE."""

    reason = "TOKEN_INVALID"

    def __init__(self, fault: str, description: str) -> None:
        super().__init__(f"the token is not valid: {description}", {"fault": fault})


class PermissionDenied(CallRefused):
    """The caller may not make this call, because it lacks `scope`.

    `field` is the field of the request that does not name a resource of the caller; "" if the method needs the scope.
    The refusal is the same for a resource that exists and for one that does not, so it has no name of a resource.
    """

    reason = "PERMISSION_DENIED"

    def __init__(self, scope: str, field: str = "") -> None:
        message, metadata = f"the caller may not do this: it needs the scope {scope}", {"scope": scope}
        if field:
            message = (
                f"{field} is not a resource of the caller; to name one of another user, it needs the scope {scope}"
            )
            metadata["field"] = field
        super().__init__(message, metadata)
