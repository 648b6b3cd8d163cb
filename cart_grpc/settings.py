"""The settings: their names, defaults, ranges and meanings, and the sources they are read from.

Sources, highest precedence first: environment variables (`CART_*`), the file `.env`, the TOML file named by
CART_CONFIG_FILE (its keys are in lower case and without the prefix), the defaults.

pydantic-settings is not used. It ignores unknown names, a missing TOML file and a name without a value in `.env`, so
our checks have to read every source anyway, and merging the sources is then one line. Importing it costs each start
70 ms of CPU.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from dotenv import dotenv_values
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from cart_grpc.reservation_api.transports import check_url

PREFIX = "CART_"
CONFIG_FILE = "CART_CONFIG_FILE"
# Variables that Kubernetes adds to every container for a Service whose name begins with "cart".
_SERVICE_LINK = re.compile(r"CART_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)")
_DATABASE_HINT = "must be sqlite:///FILE or postgresql://USER:PASSWORD@HOST:PORT/DATABASE"


class SettingsError(Exception):
    """A setting is unknown or has a wrong value. The text is one line: it names the setting and the valid values."""


def check_address(address: str) -> str:
    """Return `address` unchanged if it is HOST:PORT. Raises ValueError."""
    host, _, port = address.rpartition(":")
    if not host or not (port.isascii() and port.isdigit() and int(port) <= 65535):
        raise ValueError("must be HOST:PORT, such as 127.0.0.1:50051")
    return address


def check_database_url(url: str) -> str:
    """Return `url` unchanged if it names a PostgreSQL database or a SQLite file. Raises ValueError."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise ValueError(_DATABASE_HINT) from None
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise ValueError(_DATABASE_HINT)
    if parsed.get_backend_name() == "sqlite" and (not parsed.database or parsed.database == ":memory:"):
        raise ValueError("must name a file, sqlite:///FILE: an in-memory database is lost when the process ends")
    return url


def _upper(value: Any) -> Any:
    return value.upper() if isinstance(value, str) else value


Address = Annotated[str, AfterValidator(check_address)]
OptionalAddress = Annotated[str, AfterValidator(lambda address: address and check_address(address))]
DatabaseUrl = Annotated[str, AfterValidator(check_database_url)]
ReservationUrl = Annotated[str, AfterValidator(check_url)]
LogLevel = Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], BeforeValidator(_upper)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]


class Settings(BaseModel, frozen=True):
    """Every setting. Durations are in seconds. `cart-grpc config` prints the descriptions."""

    listen: Address = Field("127.0.0.1:50051", description="HOST:PORT to serve CartService on")
    admin_listen: OptionalAddress = Field(
        "",
        description="HOST:PORT to serve CartAdminService on; anyone who can reach it can use it; empty: not served",
    )
    database_url: DatabaseUrl = Field("sqlite:///cart.db", description="the database, as a SQLAlchemy URL")
    reservation_url: ReservationUrl = Field(
        "grpc://127.0.0.1:50061",
        description="the Reservation API: grpc://, grpcs://, http:// or https://, or basic+http:// or basic+https://",
    )
    log_level: LogLevel = Field("INFO", description="the lowest level to log, to standard error")
    call_timeout: Seconds = Field(10.0, description="seconds: maximum duration of a call, not counting its max_wait")
    lame_duck: float = Field(
        5.0,
        ge=0,
        le=3600,
        description="seconds for which a process that was asked to stop reports NOT_SERVING and still serves new calls",
    )
    shutdown_grace: float = Field(
        10.0,
        ge=0,
        le=3600,
        description="seconds that running calls may take to finish after that; at least CART_CALL_TIMEOUT",
    )
    max_calls: int = Field(1_000, ge=1, le=100_000, description="maximum calls running at once; more are rejected")
    max_calls_per_user: int = Field(
        8, ge=1, le=100_000, description="maximum calls of one user running at once; more are queued"
    )
    max_waiting_calls: int = Field(
        10_000, ge=0, le=1_000_000, description="maximum calls queued or waiting in max_wait at once"
    )
    max_waiting_calls_per_user: int = Field(
        500,
        ge=0,
        le=1_000_000,
        description="the same for one user; beyond it a queued call is rejected, max_wait is answered at once",
    )
    write_queue_size: int = Field(4096, ge=1, le=1_000_000, description="maximum queued writes; more are rejected")
    max_quantity_per_add: int = Field(100, ge=1, le=1_000_000, description="maximum quantity that one AddItem adds")
    max_quantity_per_item: int = Field(1_000, ge=1, le=1_000_000, description="maximum quantity of one item")
    max_items_per_cart: int = Field(200, ge=1, le=10_000, description="maximum number of items in a cart")
    hold_ttl: float = Field(
        900.0,
        ge=10,
        le=86_400,
        description="seconds that the Reservation API is asked to hold stock; holds are renewed while the cart lives",
    )
    cart_ttl: float = Field(
        604_800.0,
        ge=60,
        le=31_536_000,
        description="seconds without a change after which a cart expires, unless the cart has a ttl of its own",
    )
    reply_retention: float = Field(
        691_200.0, ge=604_800, le=31_536_000, description="seconds that a request_id gets its stored reply"
    )
    reservation_retention: float = Field(
        691_200.0, ge=3600, le=31_536_000, description="seconds that a finished reservation can be read"
    )
    cart_retention: float = Field(
        2_592_000.0,
        ge=604_800,
        le=315_360_000,
        description="seconds that an ended cart can be read; after that its name counts as never used",
    )
    housekeeping_interval: Seconds = Field(
        30.0, description="seconds between two rounds of expiring idle carts and purging old rows"
    )
    reservation_timeout: Seconds = Field(
        120.0, description="seconds: maximum duration of a call to the Reservation API"
    )
    reservation_grace: Seconds = Field(
        60.0, description="`basic` only: seconds after its timeout during which a request may still take effect"
    )
    reservation_max_in_flight: int = Field(
        1_000, ge=1, le=100_000, description="maximum calls in flight for holds, and the same number for releases"
    )
    reservation_backoff_initial: Seconds = Field(
        0.5, description="seconds: upper bound of the pause after a reservation's first failed attempt; it doubles"
    )
    reservation_backoff_max: Seconds = Field(
        60.0, description="seconds: maximum pause between two attempts of a reservation"
    )
    reservation_breaker_threshold: int = Field(
        5, ge=1, le=10_000, description="failures in a row after which the Reservation API counts as down"
    )
    reservation_probe_interval: Seconds = Field(
        1.0, description="seconds between two probe calls while the Reservation API counts as down"
    )
    reservation_poll_interval: Seconds = Field(
        0.5, description="seconds between two searches of the database for due reservations"
    )
    reservation_lease: float = Field(
        15.0,
        ge=1,
        le=3600,
        description="seconds that a claim is valid; it is extended while its call runs, or another replica takes over",
    )

    @property
    def is_embedded(self) -> bool:
        """Whether the database is a SQLite file, which only one process may use."""
        return make_url(self.database_url).get_backend_name() == "sqlite"

    def with_changes(self, **changes: Any) -> Self:
        """Return a copy with `changes`. The new values are not validated."""
        return self.model_copy(update=changes)

    def shown(self) -> dict[str, str]:
        """Return the settings as environment variables, with passwords hidden."""
        values = self.model_dump()
        values["database_url"] = _hide_passwords(self.database_url)
        return {variable_of(name): str(value) for name, value in values.items()}


def variable_of(name: str) -> str:
    """Return the environment variable of a setting."""
    return f"{PREFIX}{name.upper()}"


def load(environ: Mapping[str, str] = os.environ, directory: Path = Path()) -> Settings:
    """Read all sources; `.env` and a relative CART_CONFIG_FILE are looked up in `directory`. Raises SettingsError."""
    dotenv = _read_dotenv(directory / ".env")
    config_file = environ.get(CONFIG_FILE) or dotenv.get(CONFIG_FILE)
    values = {
        **(_read_toml(directory / config_file) if config_file else {}),
        **_from_variables(dotenv, ".env"),
        **_from_variables(environ, "the environment"),
    }
    try:
        return Settings(**values)
    except ValidationError as error:
        raise SettingsError(_explain(error)) from None


def _from_variables(variables: Mapping[str, str], source: str) -> dict[str, str]:
    """Return the settings among `variables`. Raises SettingsError if a CART_ variable is unknown."""
    values = {}
    for written, value in variables.items():
        variable = written.upper()
        if not variable.startswith(PREFIX) or variable == CONFIG_FILE:
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name not in Settings.model_fields:
            if _SERVICE_LINK.fullmatch(written):
                continue
            raise _unknown(written, source, [variable_of(close) for close in _similar(name)])
        values[name] = value
    return values


def _read_dotenv(path: Path) -> dict[str, str]:
    try:
        return {name: value or "" for name, value in dotenv_values(path).items()}
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: {_reason(error)}") from None


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{CONFIG_FILE}={path} cannot be read: {_reason(error)}") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{CONFIG_FILE}={path} is not TOML: {error}") from None
    for name in values:
        if name not in Settings.model_fields:
            raise _unknown(name, str(path), _similar(name.lower().removeprefix(PREFIX.lower())))
    return values


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else "it is not UTF-8"


def _similar(name: str) -> list[str]:
    return difflib.get_close_matches(name, Settings.model_fields, n=1)


def _unknown(written: str, source: str, similar: list[str]) -> SettingsError:
    hint = f"did you mean {similar[0]}?" if similar else "`cart-grpc config` lists all settings"
    return SettingsError(f"{written} in {source} is not a setting; {hint}")


def _explain(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    variable = variable_of(str(first["loc"][0]))
    message = first["msg"].removeprefix("Value error, ").replace("Input should", "must")
    # A URL may contain a password.
    value = "" if "URL" in variable else f" (it is {first['input']!r})"
    return f"{variable}: {message}{value}"


def _hide_passwords(url: str) -> str:
    parsed = make_url(url)
    hidden = {name: "***" for name in parsed.query if "pass" in name.lower()}
    return parsed.update_query_dict(hidden).render_as_string(hide_password=True)
