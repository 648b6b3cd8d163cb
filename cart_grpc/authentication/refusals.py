"""Why a caller is refused before its request is looked at: it has no valid identity, or no permission.

CallRefused
├── Unauthenticated          the call has no valid token
│   ├── TokenMissing         no `authorization` metadata, or not the scheme Bearer
│   ├── TokenExpired         `exp` has passed
│   └── TokenInvalid         everything else; `fault` in the metadata says which rule the token breaks
├── PermissionDenied         the identity is valid, but it may not make this call
└── Unavailable
    └── KeysUnavailable      the keys that could verify the token are not known at present
"""

from enum import Enum

from cart_grpc.carts.refusals import CallRefused, Unavailable


class Fault(Enum):
    """The rules that a token can break: for each its name, which callers get as `fault`, and the text for people.

    The text has no part of the token: readers of a log or an error must not learn a token or a claim from it.
    """

    SEVERAL = "the metadata `authorization` has more than one value"
    MALFORMED = "it is not a JSON Web Token in the compact form, signed and not encrypted"
    TOO_LONG = "it is too long"
    CRITICAL_HEADER = "its header has `crit` or `b64`, which are not supported"
    ALGORITHM = "its `alg` is not the algorithm of its key, or is not allowed here"
    UNKNOWN_KEY = "the issuer has no such key as its `kid`"
    KEY_ID_MISSING = "it has no `kid`, and the issuer does not have exactly one key"
    SIGNATURE = "its signature is wrong"
    ISSUER = "its `iss` is missing or is another issuer"
    AUDIENCE = "its `aud` is missing or does not have the audience of this service"
    SUBJECT = "its `sub` is missing or is not a valid user id"
    EXPIRATION_TIME = "its `exp` is missing or is not a time"
    ISSUED_AT = "its `iat` is missing or is not a time"
    NOT_BEFORE = "its `nbf` is not a time"
    NOT_YET_VALID = "its `nbf` or its `iat` is in the future"
    SCOPE = "its `scope` is neither a string nor a list of strings"


class Unauthenticated(CallRefused):
    """The call has no valid token. Nothing was looked up."""


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
    """The token breaks the rule `fault`."""

    reason = "TOKEN_INVALID"

    def __init__(self, fault: Fault) -> None:
        super().__init__(f"the token is not valid: {fault.value}", {"fault": fault.name})
        self.fault = fault


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


class KeysUnavailable(Unavailable):
    """The keys that could verify the token are not known at present. Nothing was looked up."""

    reason = "TOKEN_KEYS_UNAVAILABLE"

    def __init__(self) -> None:
        super().__init__("the keys that verify tokens are not available; nothing was changed")
