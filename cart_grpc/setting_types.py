"""The types of the settings: how each value is written, and which values are valid."""

import json
import re
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr

from cart_grpc.authentication.caller import SCOPES
from cart_grpc.compat.demos import Demo
from cart_grpc.reservation_api.transports import check_url
from cart_grpc.store import database_url, sqlite_file
from cart_grpc.store.shards import COUNTS
from cart_grpc.units import parse_duration, to_seconds

_ADDRESS: Final = re.compile(r"(\[[0-9A-Fa-f:.]+(%[\w.-]+)?\]|[\w.-]+):(?P<port>[0-9]{1,5})", re.ASCII)
_SERVICES_HINT: Final = (
    'must be a JSON object of scopes by subject alternative name, such as {"spiffe://shop.example/web": '
    f'["carts.read"]}}; scopes are {", ".join(sorted(SCOPES))}'
)
_DATABASE_HINT: Final = "must be sqlite:///FILE or postgresql://USER:PASSWORD@HOST:PORT/DATABASE"


def is_token_or_key(text: str) -> bool:
    """Whether `text` looks like PEM, or like a JSON Web Token or key, as it is (`{"`) or in base64 (`eyJ`)."""
    return bool(re.search(r"-----|\{|\beyJ", text))


def check_address(address: str) -> str:
    """Return `address` unchanged if it is HOST:PORT. Raises ValueError."""
    match = _ADDRESS.fullmatch(address)
    if not match or int(match["port"]) > 65535:
        raise ValueError("must be HOST:PORT, such as 127.0.0.1:50051")
    return address


def check_database_url(secret: SecretStr) -> SecretStr:
    """Return the URL unchanged if it names a PostgreSQL database or a SQLite file. Raises ValueError."""
    url = secret.get_secret_value()
    if database_url.SCHEME.match(url):
        database_url.parse(url)
    else:
        _check_sqlite_url(url)
    return secret


def _check_sqlite_url(url: str) -> None:
    # Importing SQLAlchemy takes half of the time of an operator's command, which has no database.
    from sqlalchemy import make_url  # noqa: PLC0415
    from sqlalchemy.exc import ArgumentError  # noqa: PLC0415

    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise ValueError(_DATABASE_HINT) from None
    if parsed.drivername not in ("sqlite", "sqlite+aiosqlite"):
        raise ValueError(_DATABASE_HINT)
    sqlite_file.check_url(url, parsed)


def _check_shard_count(count: int) -> int:
    if count not in COUNTS:
        raise ValueError(f"must be one of {', '.join(map(str, COUNTS))}")
    return count


def _check_reservation_url(secret: SecretStr) -> SecretStr:
    check_url(secret.get_secret_value())
    return secret


def _to_seconds(value: Any) -> float:
    """Return the seconds in a duration. A number, as TOML has it, is in seconds. Raises ValueError."""
    # In Python, a bool is a number.
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    return to_seconds(parse_duration(value if isinstance(value, str) else ""))


def _to_words(value: Any) -> Any:
    """Return the words in a text, which commas or spaces separate. A list, as TOML has it, is returned as it is."""
    return tuple(re.split(r"[,\s]+", value.strip(", \t"))) if isinstance(value, str) else value


def _to_demos(value: Any) -> Any:
    """Return the names in a text, each once. An empty text has none."""
    names = _to_words(value)
    if isinstance(names, tuple | list) and all(isinstance(name, str) for name in names):
        return tuple(dict.fromkeys(name.lower() for name in names if name))
    return value


def _to_services(value: Any) -> dict[str, frozenset[str]]:
    """Return the scopes of each service. `value` is JSON, or a table, as TOML has it. Raises ValueError."""
    try:
        table = json.loads(value or "{}") if isinstance(value, str) else value
        services = {str(name): frozenset(scopes) for name, scopes in table.items() if isinstance(scopes, list)}
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise ValueError(_SERVICES_HINT) from None
    if len(services) < len(table) or not all(services) or not all(scopes <= SCOPES for scopes in services.values()):
        raise ValueError(_SERVICES_HINT)
    return services


def _check_path(value: str) -> str:
    # These are in no sensible path, but in URLs with a password, and in passwords themselves.
    if not value.isprintable() or any(part in value for part in ("://", "@", "=")):
        raise ValueError("must be the path of a file, without ://, @ and =")
    if is_token_or_key(value):
        raise ValueError("must be the path of a file, not a token or a key")
    return value


def _check_token_keys(value: str) -> str:
    if value.startswith("https://"):
        if not value.isprintable() or re.search(r"\s|@", value):
            raise ValueError("must be an https:// URL without spaces, user and password")
        return value
    try:
        _check_path(value.removeprefix("file://"))
    except ValueError as error:
        raise ValueError(f"{error}, or an https:// URL") from None
    return value


def _check_claim(value: str) -> str:
    if not value.isprintable() or re.search(r"\s|:[^:]*@", value) or is_token_or_key(value):
        raise ValueError("must be a name or a URL, without spaces, and without a password, a token or a key")
    return value


def _upper(value: Any) -> Any:
    return value.upper() if isinstance(value, str) else value


OptionalAddress = Annotated[str, AfterValidator(lambda address: address and check_address(address))]
ShardCount = Annotated[int, AfterValidator(_check_shard_count)]
DatabaseUrl = Annotated[SecretStr, AfterValidator(check_database_url)]
ReservationUrl = Annotated[SecretStr, AfterValidator(_check_reservation_url)]
Services = Annotated[dict[str, frozenset[str]], BeforeValidator(_to_services)]
Algorithm = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
]  # asymmetric ones only: a program that checks tokens with a shared secret could also make them
Demos = Annotated[tuple[Demo, ...], BeforeValidator(_to_demos)]
Algorithms = Annotated[tuple[Algorithm, ...], BeforeValidator(_to_words), Field(min_length=1)]
TokenKeys = Annotated[str, AfterValidator(_check_token_keys)]
Claim = Annotated[str, AfterValidator(_check_claim)]
FilePath = Annotated[str, AfterValidator(_check_path)]
LogLevel = Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], BeforeValidator(_upper)]
Duration = Annotated[float, BeforeValidator(_to_seconds), Field(allow_inf_nan=False)]
"""Seconds, written as `90`, `90s`, `1h30m` or `PT15M`."""
ShortDuration = Annotated[Duration, Field(gt=0, le=86_400)]
