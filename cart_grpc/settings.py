"""What can be set, where it is read from, and what is said when it is wrong.

Sources, the first wins: the environment (`CART_*`), the file `.env`, the file named by CART_CONFIG_FILE (TOML, names in
lower case and without the prefix), the defaults.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from dotenv import dotenv_values
from pydantic import AfterValidator, Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from cart_grpc.reservation_api.transports import check_url

PREFIX = "CART_"
CONFIG_FILE = "CART_CONFIG_FILE"
# What Kubernetes puts into each container's environment for a Service whose name begins with "cart".
_SERVICE_LINK = re.compile(r"CART_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)")
_DATABASE_HINT = "should be sqlite:///FILE or postgresql://USER:PASSWORD@HOST:PORT/DATABASE"


class SettingsError(Exception):
    """A setting is wrong or unknown. Its text is one line that names it and says what would be right."""


def check_address(address: str) -> str:
    """Returns HOST:PORT as it is. Raises ValueError."""
    host, _, port = address.rpartition(":")
    if not host or not (port.isascii() and port.isdigit() and int(port) <= 65535):
        raise ValueError("should be HOST:PORT, such as 127.0.0.1:50051")
    return address


def check_database_url(url: str) -> str:
    """Returns the URL as it is. Raises ValueError."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise ValueError(_DATABASE_HINT) from None
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise ValueError(_DATABASE_HINT)
    if parsed.get_backend_name() == "sqlite" and (not parsed.database or parsed.database == ":memory:"):
        raise ValueError("needs a file, sqlite:///FILE: what is in memory alone is lost with the process")
    return url


Address = Annotated[str, AfterValidator(check_address)]
OptionalAddress = Annotated[str, AfterValidator(lambda address: address and check_address(address))]
DatabaseUrl = Annotated[str, AfterValidator(check_database_url)]
ReservationUrl = Annotated[str, AfterValidator(check_url)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]


class Settings(BaseSettings):
    """Every setting. Durations are in seconds."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore")

    listen: Address = Field("127.0.0.1:50051", description="where to listen, HOST:PORT")
    admin_listen: OptionalAddress = Field(
        "", description="where to listen for operators, HOST:PORT; whoever reaches it may do all they can; empty: off"
    )
    database_url: DatabaseUrl = Field("sqlite:///cart.db", description="the database, as a SQLAlchemy URL")
    reservation_url: ReservationUrl = Field(
        "grpc://127.0.0.1:50061",
        description="the Reservation API: grpc://, grpcs://, http://, https://, or basic+http:// and basic+https://",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="what is logged, to stderr")
    call_timeout: Seconds = Field(10.0, description="the longest a call takes; its max_wait comes on top")
    shutdown_grace: float = Field(10.0, ge=0, le=3600, description="how long calls under way may go on at the end")
    max_calls: int = Field(1_000, ge=1, le=100_000, description="calls at work at a time before one is refused")
    max_calls_per_user: int = Field(
        8, ge=1, le=100_000, description="of them, one user's; further ones wait until one of them ends"
    )
    max_waiting_calls: int = Field(
        10_000,
        ge=0,
        le=1_000_000,
        description="calls that wait at a time: for that, or as max_wait says for a reservation",
    )
    max_waiting_calls_per_user: int = Field(
        500, ge=0, le=1_000_000, description="of them, one user's; one more is refused, or answered without waiting"
    )
    write_queue_size: int = Field(4096, ge=1, le=1_000_000, description="writes that may wait before one is refused")
    max_quantity_per_add: int = Field(100, ge=1, le=1_000_000, description="the most that one AddItem adds")
    max_quantity_per_item: int = Field(1_000, ge=1, le=1_000_000, description="the most that one item holds")
    max_items_per_cart: int = Field(200, ge=1, le=10_000, description="the most items in a cart")
    hold_ttl: float = Field(
        900.0,
        ge=10,
        le=86_400,
        description="how long stock is asked to be held; holds are renewed while the cart lives",
    )
    cart_ttl: float = Field(
        604_800.0,
        ge=60,
        le=31_536_000,
        description="how long a cart is kept when it is left alone and says nothing else",
    )
    reply_retention: float = Field(
        691_200.0, ge=604_800, le=31_536_000, description="how long a request_id gets its reply again"
    )
    reservation_retention: float = Field(
        691_200.0, ge=3600, le=31_536_000, description="how long a finished reservation can be looked up"
    )
    cart_retention: float = Field(
        2_592_000.0,
        ge=604_800,
        le=315_360_000,
        description="how long a cart that has ended can be read; later its name is as if it had never been used",
    )
    housekeeping_interval: Seconds = Field(30.0, description="how often to look for idle carts and for what to purge")
    reservation_timeout: Seconds = Field(120.0, description="the longest that one call of the Reservation API takes")
    reservation_grace: Seconds = Field(
        60.0, description="how much later than that a request may take effect, where the contract is `basic`"
    )
    reservation_max_in_flight: int = Field(
        1_000, ge=1, le=100_000, description="holds asked for at a time, and as many releases beside them"
    )
    reservation_backoff_max: Seconds = Field(60.0, description="the longest pause between two tries of a reservation")
    reservation_poll_interval: Seconds = Field(0.5, description="how often to look for what is due")
    reservation_lease: float = Field(
        15.0, ge=1, le=3600, description="after how long without a sign of life a replica's claims are taken over"
    )

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, value: Any, _: ValidationInfo) -> Any:
        return value.upper() if isinstance(value, str) else value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # `load` has merged the sources already, so that an unknown name is noticed in each.
        return (init_settings,)

    @property
    def is_embedded(self) -> bool:
        """Whether the database is a file that this process has for itself."""
        return make_url(self.database_url).get_backend_name() == "sqlite"

    def with_changes(self, **changes: Any) -> Self:
        """These settings with some replaced. The values are not checked again."""
        return self.model_copy(update=changes)

    def shown(self) -> dict[str, str]:
        """Names and values as the environment would have them, passwords hidden."""
        values = self.model_dump()
        values["database_url"] = _without_secrets(self.database_url)
        return {f"{PREFIX}{name.upper()}": str(value) for name, value in values.items()}


def _without_secrets(url: str) -> str:
    parsed = make_url(url)
    hidden = {name: "***" for name in parsed.query if "pass" in name.lower()}
    return parsed.update_query_dict(hidden).render_as_string(hide_password=True)


def load(environ: Mapping[str, str] = os.environ, directory: Path = Path()) -> Settings:
    """The settings in force. Raises SettingsError, one line for the first that is wrong."""
    dotenv = _read_dotenv(directory / ".env")
    merged: dict[str, str] = {}
    for source, values in ((".env", dotenv), ("the environment", environ)):
        for name, value in values.items():
            if name.upper().startswith(PREFIX) and name.upper() != CONFIG_FILE:
                setting = name.upper().removeprefix(PREFIX).lower()
                if setting in Settings.model_fields or not _SERVICE_LINK.fullmatch(name):
                    merged[_known(setting, name, source)] = value
    path = environ.get(CONFIG_FILE) or dotenv.get(CONFIG_FILE)
    from_file = _read_file(directory / path) if path else {}
    try:
        return Settings(**{**from_file, **merged})
    except ValidationError as error:
        raise SettingsError(_explain(error)) from None


def _known(setting: str, written: str, source: str) -> str:
    if setting in Settings.model_fields:
        return setting
    close = difflib.get_close_matches(written.lower().removeprefix(PREFIX.lower()), Settings.model_fields, n=1)
    # A file has its names in lower case and without the prefix.
    right = [name if written == setting else f"{PREFIX}{name.upper()}" for name in close]
    hint = f"did you mean {right[0]}?" if right else "`cart-grpc config` lists those there are"
    raise SettingsError(f"{written} in {source} is not a setting; {hint}")


def _read_dotenv(path: Path) -> dict[str, str]:
    try:
        return {name: value or "" for name, value in dotenv_values(path).items()}
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise SettingsError(f"{path} cannot be read: {reason}") from None


def _read_file(path: Path) -> dict[str, Any]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise SettingsError(f"{CONFIG_FILE}={path} cannot be read: {reason}") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{CONFIG_FILE}={path} is not TOML: {error}") from None
    return {_known(name, name, str(path)): value for name, value in content.items()}


def _explain(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    name = f"{PREFIX}{str(first['loc'][0]).upper()}"
    message = first["msg"].removeprefix("Value error, ")
    # What was given may hold a password.
    given = "" if "url" in name.lower() else f" (it is {first['input']!r})"
    return f"{name}: {message[:1].lower()}{message[1:]}{given}"
