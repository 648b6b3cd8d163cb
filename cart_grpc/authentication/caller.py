"""The identity of a caller, and the scopes that it can have."""

from dataclasses import dataclass
from typing import Final

CARTS_READ: Final = "carts.read"
CARTS_WRITE: Final = "carts.write"
CARTS_ACT_AS: Final = "carts.act-as"
ADMIN_READ: Final = "admin.read"
ADMIN_WRITE: Final = "admin.write"
SCOPES: Final = frozenset({CARTS_READ, CARTS_WRITE, CARTS_ACT_AS, ADMIN_READ, ADMIN_WRITE})
# A token that names none of our scopes has these: an issuer need not know this service.
USER_SCOPES: Final = frozenset({CARTS_READ, CARTS_WRITE})


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a call.

    `user_id` is the user whose carts the caller owns; "" for a service. `service` is the subject alternative name by
    which a service is known; "" for a token. With the scope `carts.act-as`, a caller may name any user. `expiry` is the
    time at which the identity ends, in seconds since the Unix epoch; None if it ends with the connection.
    """

    user_id: str
    service: str
    scopes: frozenset[str]
    expiry: float | None = None


# Has no scopes, so it may do nothing.
NOBODY: Final = Caller("", "", frozenset())
