"""PostgreSQL's URLs, with the parameters of libpq, as managed providers hand them out.

Pure: it opens no file and no connection. No error contains a value from the URL, and none quotes a URL that is
ambiguous: a part of it may be a part of the password. libpq splits the URL at the first `@`, so a second one means that
the password was not encoded.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote, unquote

from cart_grpc.store.database_parameters import (
    KNOWN,
    SECRET,
    VARIABLES,
    DatabaseUrlError,
    check_name,
    check_values,
    refusal,
    to_int,
)

DEFAULT_TIMEOUT_SECONDS: Final = 5.0
SCHEME: Final = re.compile(r"postgres(ql)?(\+asyncpg)?://", re.IGNORECASE)
_FORM: Final = "must be postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
_ENCODE: Final = (
    f"{_FORM}; percent-encode special characters in the user, the password and the database: "
    "@ as %40, : as %3A, / as %2F, ? as %3F, # as %23, % as %25"
)
_URL: Final = re.compile(
    SCHEME.pattern + r"(?P<login>(?P<user>[^:@/]*)(:(?P<password>[^@/]*))?@)?"
    r"(?P<hosts>[^/?@]*)(/(?P<database>[^/?@]*))?(\?(?P<query>.*))?",
    re.IGNORECASE,
)
_HOST: Final = re.compile(r"(\[(?P<ipv6>[^\]]+)\]|(?P<host>[^:\[\]]*))(:(?P<port>[0-9]*))?")
# A name, an address, or the folder of a Unix socket.
_HOST_NAME: Final = re.compile(r"/[^\x00]+|[\w.:%-]+", re.ASCII)
_SETTING: Final = re.compile(r"[A-Za-z_][\w.-]*", re.ASCII)
# Another user name may be a password at the wrong place.
_HARMLESS_USER: Final = re.compile(r"([\w.+-]+(@[\w.-]+)?)?", re.ASCII)
_ALIASES: Final = {"ssl": "sslmode", "database": "dbname"}
_IN_URL: Final = ("user", "password", "host", "port", "dbname")
_SOCKET_OPTIONS: Final = {
    "keepalives_idle": "TCP_KEEPIDLE",
    "keepalives_interval": "TCP_KEEPINTVL",
    "keepalives_count": "TCP_KEEPCNT",
    "tcp_user_timeout": "TCP_USER_TIMEOUT",
}


@dataclass(frozen=True, slots=True)
class Tls:
    """How connections are encrypted. The names are those of libpq's parameters, without `ssl`."""

    mode: str = "prefer"
    rootcert: str | None = None
    cert: str | None = None
    key: str | None = None
    password: str | None = field(default=None, repr=False)
    crl: str | None = None
    min_version: str = "TLSv1.2"
    max_version: str | None = None
    direct: bool = False


@dataclass(frozen=True, slots=True)
class ConnectArguments:
    """The contents of a URL. `hosts` are (host, port); None is the driver's default.

    `name` is the URL without parameters, `shown` with them; neither has a password. `timeout`: seconds for one host.
    `settings`: session settings by name. `socket_options`: by the names of the socket module; 0 is the system's value.
    `shuffles`: each connection tries the hosts in another order.
    """

    name: str
    shown: str
    hosts: tuple[tuple[str | None, int | None], ...]
    user: str | None
    password: str | None = field(repr=False)
    passfile: str | None
    database: str | None
    tls: Tls
    timeout: float
    settings: Mapping[str, str] = field(repr=False)
    socket_options: Mapping[str, int]
    shuffles: bool


def parse(url: str, environ: Mapping[str, str] = os.environ) -> ConnectArguments:
    """Return what `url` says; `environ` has libpq's variables, which are used if the URL is silent.

    Raises DatabaseUrlError.
    """
    match = _URL.fullmatch(url)
    if not match or not url.isprintable() or "?" in (match["user"] or ""):
        raise DatabaseUrlError(_ENCODE if SCHEME.match(url) else _FORM)
    query = _parse_query(match["query"] or "", has_login=match["login"] is not None)
    hosts, ports = _split_authority(match["hosts"])
    written = {
        "user": _decode(match["user"] or ""),
        "password": _decode(match["password"] or ""),
        "host": hosts,
        "port": ports,
        "dbname": _decode(match["database"] or ""),
        **query,
    }
    inherited = {name: environ[variable] for variable, name in VARIABLES.items() if environ.get(variable)}
    # As in libpq, an empty parameter counts as not given.
    return _to_arguments(check_values({**inherited, **{name: value for name, value in written.items() if value}}))


def _split_authority(text: str) -> tuple[str, str]:
    """Return the hosts and the ports, each with commas between them, as in the parameters `host` and `port`."""
    matches = [_HOST.fullmatch(part) for part in text.split(",")]
    found = [match for match in matches if match]
    if len(found) < len(matches):
        raise DatabaseUrlError(_ENCODE)
    ports = ",".join(match["port"] or "" for match in found)
    return ",".join(match["ipv6"] or _decode(match["host"]) for match in found), ports.strip(",") and ports


def _parse_query(text: str, *, has_login: bool) -> dict[str, str]:
    # If a password was not encoded, the query may be its second half.
    if has_login and "@" in text:
        raise DatabaseUrlError(_ENCODE)
    values: dict[str, str] = {}
    for part in filter(None, text.split("&")):
        written, equals, value = part.partition("=")
        name = _ALIASES.get(written, written)
        # After a secret, a name that is unknown may be the rest of the secret.
        if not equals or (name not in KNOWN and (SECRET & values.keys() or "@" in text or not name.isidentifier())):
            raise DatabaseUrlError("the part after the question mark must be NAME=VALUE&NAME=VALUE, percent-encoded")
        check_name(name)
        # `ssl=true` is the form of JDBC.
        values[name] = "require" if part == "ssl=true" else _decode(value)
    return values


def _to_arguments(values: Mapping[str, str]) -> ConnectArguments:
    hosts = _pair(values.get("host", ""), values.get("port", ""))
    name, shown = _render(values, hosts)
    application = values.get("application_name") or values.get("fallback_application_name")
    settings = {"application_name": application} if application else {}
    return ConnectArguments(
        name=name,
        shown=shown,
        hosts=hosts,
        user=values.get("user"),
        password=values.get("password"),
        passfile=values.get("passfile"),
        database=values.get("dbname"),
        tls=Tls(
            mode=values.get("sslmode", "prefer"),
            rootcert=values.get("sslrootcert"),
            cert=values.get("sslcert"),
            key=values.get("sslkey"),
            password=values.get("sslpassword"),
            crl=values.get("sslcrl"),
            min_version=values.get("ssl_min_protocol_version", "TLSv1.2"),
            max_version=values.get("ssl_max_protocol_version"),
            direct=values.get("sslnegotiation") == "direct",
        ),
        timeout=to_int(values, "connect_timeout", 1, 3600) or DEFAULT_TIMEOUT_SECONDS,
        settings={**settings, **_parse_options(values.get("options", ""))},
        socket_options=_to_socket_options(values),
        shuffles=values.get("load_balance_hosts") == "random",
    )


def _pair(host: str, port: str) -> tuple[tuple[str | None, int | None], ...]:
    """Return each host with its port. One port is for all hosts."""
    hosts, ports = host.split(","), port.split(",")
    if len(ports) == 1:
        ports *= len(hosts)
    if len(ports) != len(hosts):
        raise refusal("port", "must have one port, or one for each host")
    if len(hosts) > 1 and not all(hosts):
        raise refusal("host", "must not have an empty name between commas")
    for one in hosts:
        if one and not _HOST_NAME.fullmatch(one):
            raise DatabaseUrlError(_ENCODE)
    numbers = [to_int({"port": one}, "port", 1, 65535) if one else None for one in ports]
    return tuple(zip((one or None for one in hosts), numbers, strict=True))


def _render(values: Mapping[str, str], hosts: Sequence[tuple[str | None, int | None]]) -> tuple[str, str]:
    """Return the URL without and with its parameters, and with `***` for every secret."""
    user = values.get("user", "")
    login = (user if _HARMLESS_USER.fullmatch(user) else "***") + (":***" if "password" in values else "")
    parameters = {name: "***" if name in SECRET else value for name, value in values.items() if name not in _IN_URL}
    authority = ""
    if any(host and host.startswith("/") for host, _ in hosts):
        # The folder of a Unix socket.
        parameters = {name: values[name] for name in ("host", "port") if name in values} | parameters
    else:
        authority = ",".join(_render_address(host or "", port) for host, port in hosts)
    name = f"postgresql://{login and f'{login}@'}{authority}/{quote(values.get('dbname', ''))}"
    query = "&".join(f"{name}={quote(value, safe='/:,*')}" for name, value in parameters.items())
    return name, f"{name}?{query}" if query else name


def _render_address(host: str, port: int | None) -> str:
    shown = f"[{host}]" if ":" in host else host
    return f"{shown}:{port}" if port else shown


def _parse_options(text: str) -> dict[str, str]:
    """Return the session settings in `options`: `-c name=value`, `-cname=value` or `--name=value`, with backslashes."""
    settings = {}
    words = iter(re.findall(r"(?:\\.|[^\s\\])+", text))
    for word in words:
        assignment = next(words, "") if word == "-c" else word.removeprefix("--" if word.startswith("--") else "-c")
        name, equals, value = assignment.partition("=")
        if not word.startswith(("-c", "--")) or not equals or not _SETTING.fullmatch(name):
            raise refusal("options", "must be -c NAME=VALUE or --NAME=VALUE, with spaces between several")
        settings[name.replace("-", "_").lower()] = re.sub(r"\\(.)", r"\1", value)
    return settings


def _to_socket_options(values: Mapping[str, str]) -> dict[str, int]:
    given = {option: to_int(values, name, 0, 2_147_483) for name, option in _SOCKET_OPTIONS.items()}
    return {option: value for option, value in given.items() if value is not None}


def _decode(text: str) -> str:
    if re.search("%(?![0-9A-Fa-f]{2})|%00", text):
        raise DatabaseUrlError(_ENCODE)
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise DatabaseUrlError(_ENCODE) from None
