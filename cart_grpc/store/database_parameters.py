"""The parameters of libpq: those that work, those of which only some values do, and those that are refused.

A parameter either works, or is refused by name with a remedy; nothing is ignored in silence. No error contains a value.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Final

SECRET: Final = frozenset({"password", "sslpassword", "options"})
# The variables that libpq reads if the URL does not have the parameter.
VARIABLES: Final = {
    "PGHOST": "host",
    "PGPORT": "port",
    "PGUSER": "user",
    "PGPASSWORD": "password",
    "PGDATABASE": "dbname",
    "PGPASSFILE": "passfile",
    "PGOPTIONS": "options",
    "PGAPPNAME": "application_name",
    "PGCONNECT_TIMEOUT": "connect_timeout",
    "PGTARGETSESSIONATTRS": "target_session_attrs",
    "PGCHANNELBINDING": "channel_binding",
    "PGSSLMODE": "sslmode",
    "PGSSLNEGOTIATION": "sslnegotiation",
    "PGSSLROOTCERT": "sslrootcert",
    "PGSSLCERT": "sslcert",
    "PGSSLKEY": "sslkey",
    "PGSSLCRL": "sslcrl",
    "PGSSLMINPROTOCOLVERSION": "ssl_min_protocol_version",
    "PGSSLMAXPROTOCOLVERSION": "ssl_max_protocol_version",
}
_WORKING: Final = frozenset(VARIABLES.values()) | {
    "fallback_application_name", "keepalives_count", "keepalives_idle", "keepalives_interval", "load_balance_hosts",
    "sslpassword", "tcp_user_timeout",
}  # fmt: skip
_PRIMARY: Final = "cart-grpc writes, so every connection goes to the primary"
# Parameters of which only some values are supported: these values, and what to do instead of the others.
_LIMITED: Final[Mapping[str, tuple[tuple[str, ...], str]]] = {
    "channel_binding": (
        ("prefer", "disable"),
        "the driver has no channel binding; sslmode=verify-full with sslrootcert proves who the server is",
    ),
    "client_encoding": (("utf8", "utf-8", "auto"), "text is always UTF-8"),
    "gssencmode": (("disable", "prefer"), "the driver has no GSSAPI encryption; use sslmode"),
    "keepalives": (("1",), "without keepalives, a connection whose packets vanish would never end"),
    "load_balance_hosts": (("disable", "random"), ""),
    "replication": (("false", "off", "no", "0"), "remove it"),
    "sslcertmode": (("allow",), "remove it"),
    "sslcompression": (("0", "1"), "libpq ignores it, too"),
    "sslmode": (("disable", "allow", "prefer", "require", "verify-ca", "verify-full"), ""),
    "sslnegotiation": (("postgres", "direct"), ""),
    "sslsni": (("1",), "the driver always sends the host name"),
    "ssl_max_protocol_version": (("TLSv1.2", "TLSv1.3"), ""),
    "ssl_min_protocol_version": (("TLSv1.2", "TLSv1.3"), ""),
    "target_session_attrs": (("any", "primary", "read-write"), _PRIMARY),
}
# Parameters that are not supported, and what to do instead.
_REFUSED: Final[Mapping[str, str]] = {
    "gssdelegation": "GSSAPI is not supported",
    "gsslib": "GSSAPI is not supported",
    "hostaddr": "write the address as the host",
    "krbsrvname": "GSSAPI is not supported",
    "max_protocol_version": "remove it",
    "min_protocol_version": "remove it",
    "require_auth": "use sslmode=verify-full, so that only the right server gets the password",
    "requirepeer": "remove it",
    "requiressl": "use sslmode=require",
    "scram_client_key": "use a password",
    "scram_server_key": "use a password",
    "service": "write the parameters of the service into the URL",
    "servicefile": "write the parameters of the service into the URL",
    "sslcrldir": "use sslcrl",
    "sslkeylogfile": "remove it",
}
KNOWN: Final = sorted(_WORKING | _LIMITED.keys() | _REFUSED.keys())


class DatabaseUrlError(ValueError):
    """The URL cannot be used. The text is one line that names the parameter at fault and contains no value."""


def refusal(name: str, why: str) -> DatabaseUrlError:
    """Return the error for a parameter."""
    return DatabaseUrlError(f"the parameter {name} {why}")


def check_name(name: str) -> None:
    """Raise DatabaseUrlError if the parameter is unknown or not supported."""
    if name in _REFUSED:
        raise refusal(name, f"is not supported: {_REFUSED[name]}")
    if name not in KNOWN:
        close = difflib.get_close_matches(name, KNOWN, n=1)
        raise refusal(name, f"is unknown; did you mean {close[0]}?" if close else "is unknown")


def check_values(values: Mapping[str, str]) -> dict[str, str]:
    """Return the values as libpq spells them. Raises DatabaseUrlError for a value that is not supported."""
    checked = dict(values)
    for name, (allowed, instead) in _LIMITED.items():
        if name in values:
            spellings = {value.lower(): value for value in allowed}
            if values[name].lower() not in spellings:
                raise refusal(name, f"must be {_either(allowed)}{instead and f': {instead}'}")
            checked[name] = spellings[values[name].lower()]
    _check_tls(checked)
    return checked


def _check_tls(values: Mapping[str, str]) -> None:
    """Raise DatabaseUrlError if the parameters for TLS promise more than together they keep."""
    mode, root = values.get("sslmode", "prefer"), values.get("sslrootcert")
    encrypted = mode in ("require", "verify-ca", "verify-full")
    for name in ("sslrootcert", "sslcert", "sslkey", "sslcrl"):
        if name in values and not encrypted:
            raise refusal(name, "needs sslmode=verify-full, or at least sslmode=require")
    if values.get("sslnegotiation") == "direct" and not encrypted:
        raise refusal("sslnegotiation", "can be direct only with sslmode=require, verify-ca or verify-full")
    if mode.startswith("verify") and not root:
        raise refusal("sslmode", f"can be {mode} only with sslrootcert=FILE or, for verify-full, sslrootcert=system")
    if root == "system" and mode != "verify-full":
        raise refusal("sslrootcert", "can be system only with sslmode=verify-full")
    if "sslcrl" in values and not root:
        raise refusal("sslcrl", "needs sslrootcert")
    if "sslkey" in values and "sslcert" not in values:
        raise refusal("sslkey", "needs sslcert")


def to_int(values: Mapping[str, str], name: str, least: int, most: int) -> int | None:
    """Return the number in a parameter, None if it is not given. Raises DatabaseUrlError."""
    text = values.get(name)
    if text is None:
        return None
    if not re.fullmatch("[0-9]{1,9}", text) or not least <= int(text) <= most:
        raise refusal(name, f"must be a whole number from {least} to {most}")
    return int(text)


def _either(values: Sequence[str]) -> str:
    return f"{', '.join(values[:-1])} or {values[-1]}" if len(values) > 1 else values[0]
