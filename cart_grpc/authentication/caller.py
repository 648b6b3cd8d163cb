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
    """The identity of a caller.

    `user_id` is the user whose carts the caller owns; "" for a service. `service` is the subject alternative name by
    which a service is known; "" for a token. With the scope `carts.act-as`, a caller may name any user. `expiry` is the
    time at which the identity ends, in seconds since the Unix epoch; None if it ends with the connection.
    """

    user_id: str
    service: str
    scopes: frozenset[str]
    expiry: float | None = None

    @property
    def acting_service(self) -> str:
        """The name of the service, if the caller acts for many users: the subject of its token, if it has no other.

        "" for a user.
        """
        return self.service or (f"users/{self.user_id}" if CARTS_ACT_AS in self.scopes else "")

    def owns(self, name: str) -> bool:
        """Whether `name` is `users/{user_id}`, or begins with that and a slash."""
        own = f"users/{self.user_id}"
        return bool(self.user_id) and (name == own or name.startswith(f"{own}/"))


# Has no scopes, so it may do nothing.
NOBODY: Final = Caller("", "", frozenset())
