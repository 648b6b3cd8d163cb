"""The settings: their names, defaults, ranges and meanings. `configuration` reads them."""

import json
import re
from collections.abc import Mapping
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, Field, SecretStr

from cart_grpc.setting_types import (
    Algorithms,
    Claim,
    DatabaseUrl,
    Demos,
    Duration,
    FilePath,
    LogLevel,
    OptionalAddress,
    ReservationUrl,
    Services,
    ShardCount,
    ShortDuration,
    TokenKeys,
)
from cart_grpc.store import database_url
from cart_grpc.tls.reloaded_files import NamedFile
from cart_grpc.units import format_duration, to_us

PREFIX: Final = "CART_"


class Settings(BaseModel, frozen=True, hide_input_in_errors=True):
    """Every setting. Inside, durations are in seconds. `cart-grpc config` prints the descriptions."""

    listen: OptionalAddress = Field(
        "127.0.0.1:50051",
        description="HOST:PORT to serve CartService on, with TLS if CART_TLS_CERT_FILE is set; may be empty if "
        "CART_SERVICE_LISTEN is set",
    )
    service_listen: OptionalAddress = Field(
        "",
        description="HOST:PORT to serve CartService on for services, which show a certificate; empty: not served",
    )
    admin_listen: OptionalAddress = Field(
        "",
        description="HOST:PORT to serve CartAdminService on: a loopback address, which every local user can call, or "
        "any address for services that show a certificate; empty: not served",
    )
    health_listen: OptionalAddress = Field(
        "",
        description="HOST:PORT to answer grpc.health.v1.Health/Check, and nothing else, on without TLS; empty: "
        "127.0.0.1:50059 if CART_LISTEN is empty or has TLS, else not served",
    )
    metrics_listen: OptionalAddress = Field(
        "",
        description="HOST:PORT to serve metrics for Prometheus on, at /metrics, without TLS; empty: not served",
    )
    allow_anyone_to_be_any_user: bool = Field(
        False,  # noqa: FBT003 - the default
        description="true: serve CartService beyond loopback without identities, so that every caller can be any user",
    )
    reflection: Literal["auto", "on", "off"] = Field(
        "auto", description="whether the servers offer reflection: on, off, or auto: only without identities"
    )
    compat: Demos = Field(
        (),
        description="demo shops whose cart service is served too, on the same carts: oteldemo, hipstershop, eshop, "
        "separated by commas",
    )
    tls_cert_file: FilePath = Field("", description="PEM file with the certificate chain that this process shows")
    tls_key_file: FilePath = Field("", description="PEM file with the private key of CART_TLS_CERT_FILE")
    client_ca_file: FilePath = Field("", description="PEM file with the authorities of services' certificates")
    services: Services = Field(
        {},
        description="scopes of each service, as JSON by subject alternative name (a URI or a DNS name), such as "
        '{"spiffe://shop.example/web": ["carts.read", "carts.write", "carts.act-as"]}',
    )
    token_keys: TokenKeys = Field(
        "", description="JSON Web Key Set that signs callers' tokens: a file or an https:// URL; empty: no tokens"
    )
    token_issuer: Claim = Field("", description="the `iss` that every token must have")
    token_audience: Claim = Field("", description="the `aud` that every token must have, alone or among others")
    token_algorithms: Algorithms = Field(
        ("RS256", "ES256", "EdDSA"), description="algorithms of keys that may sign tokens, separated by commas"
    )
    token_leeway: Duration = Field(
        10.0, ge=0, le=30, description="how far the issuer's clock may differ from the clock of this machine"
    )
    database_url: DatabaseUrl = Field(
        SecretStr("sqlite:///cart.db"),
        description="the database: sqlite:///FILE or postgresql://, with libpq's parameters",
    )
    database_password_file: FilePath = Field(
        "", description="file with the password for CART_DATABASE_URL; it is read for each new session"
    )
    database_shards: ShardCount = Field(
        1,
        description="number of schemas over which a new PostgreSQL database is spread, at most 128, a power of two; it "
        "cannot be changed later",
    )
    reservation_url: ReservationUrl = Field(
        SecretStr("grpc://127.0.0.1:50061"),
        description="the Reservation API: grpc://, grpcs://, http:// or https://, or basic+http:// or basic+https://",
    )
    reservation_ca_file: FilePath = Field(
        "", description="PEM file with the authorities of the Reservation API's certificate; empty: the public ones"
    )
    reservation_cert_file: FilePath = Field(
        "", description="PEM file with the certificate chain to show to the Reservation API"
    )
    reservation_key_file: FilePath = Field(
        "", description="PEM file with the private key of CART_RESERVATION_CERT_FILE"
    )
    reservation_token_file: FilePath = Field(
        "", description="file with the bearer token for the Reservation API; it is read again when it changes"
    )
    log_level: LogLevel = Field("INFO", description="the lowest level to log, to standard error")
    log_format: Literal["auto", "text", "json"] = Field(
        "auto", description="the format of the log: text, json, or auto: text on a terminal, else json"
    )
    log_calls: Literal["off", "refused", "all"] = Field(
        "refused", description="calls that get a line in the log: refused (and failed and slow ones), all, or off"
    )
    slow_call: ShortDuration = Field(
        1.0, description="duration, not counting its max_wait, from which a call is logged as slow"
    )
    call_timeout: ShortDuration = Field(10.0, description="maximum duration of a call, not counting its max_wait")
    lame_duck: Duration = Field(
        5.0,
        ge=0,
        le=3600,
        description="time for which a process that was asked to stop reports NOT_SERVING and still serves new calls",
    )
    shutdown_grace: Duration = Field(
        10.0,
        ge=0,
        le=3600,
        description="time that running calls may take to finish after that; at least CART_CALL_TIMEOUT",
    )
    max_calls: int = Field(1_000, ge=1, le=100_000, description="maximum calls running at once; more are rejected")
    max_calls_per_user: int = Field(
        8, ge=1, le=100_000, description="maximum calls of one user running at once; more are queued"
    )
    max_calls_per_service: int = Field(
        500, ge=1, le=100_000, description="maximum calls of one service running at once, for all its users together"
    )
    max_waiting_calls: int = Field(
        10_000, ge=0, le=1_000_000, description="maximum calls queued or waiting in max_wait at once"
    )
    # With max_calls_per_user fewer than a connection carries (see rpc/server.py): a flood must not fill a connection.
    max_waiting_calls_per_user: int = Field(
        70,
        ge=0,
        le=1_000_000,
        description="the same for one user; beyond it a queued call is rejected, max_wait is answered at once",
    )
    write_queue_size: int = Field(4096, ge=1, le=1_000_000, description="maximum queued writes; more are rejected")
    max_quantity_per_add: int = Field(100, ge=1, le=1_000_000, description="maximum quantity that one AddItem adds")
    max_quantity_per_item: int = Field(1_000, ge=1, le=1_000_000, description="maximum quantity of one item")
    max_items_per_cart: int = Field(200, ge=1, le=10_000, description="maximum number of items in a cart")
    max_cart_bytes: int = Field(
        262_144,
        ge=131_072,
        le=1_048_576,
        description="maximum bytes of an encoded cart; a request may have 65536 bytes more",
    )
    max_user_bytes: int = Field(
        67_108_864,
        ge=4_194_304,
        le=1_099_511_627_776,
        description="maximum bytes stored for one user: carts, replies to request_ids and reservations",
    )
    max_carts_per_user: int = Field(
        1_000, ge=1, le=1_000_000, description="maximum number of carts of one user that have not ended"
    )
    max_items_per_user: int = Field(
        5_000, ge=1, le=10_000_000, description="maximum number of items in all carts of one user"
    )
    max_units_per_user: int = Field(
        20_000, ge=1, le=1_000_000_000, description="maximum quantity in all carts of one user, reserved or not yet"
    )
    hold_ttl: Duration = Field(
        900.0,
        ge=10,
        le=86_400,
        description="time for which the Reservation API is asked to hold stock; holds are renewed while the cart lives",
    )
    cart_ttl: Duration = Field(
        604_800.0,
        ge=60,
        le=31_536_000,
        description="time without a change after which a cart expires, unless the cart has a ttl of its own",
    )
    reply_retention: Duration = Field(
        691_200.0, ge=604_800, le=31_536_000, description="time for which a request_id gets its stored reply"
    )
    reservation_retention: Duration = Field(
        691_200.0, ge=3600, le=31_536_000, description="time for which a finished reservation can be read"
    )
    cart_retention: Duration = Field(
        2_592_000.0,
        ge=604_800,
        le=315_360_000,
        description="time for which an ended cart can be read; after that its name counts as never used",
    )
    checkout_retention: Duration = Field(
        7_776_000.0, ge=604_800, le=315_360_000, description="time for which an ended checkout can be read"
    )
    marker_retention: Duration = Field(
        7_776_000.0,
        ge=604_800,
        le=315_360_000,
        description="time for which the commit marker of a process is kept that has not committed; a start deletes "
        "older ones, and a COMMIT that breaks needs its own",
    )
    housekeeping_interval: ShortDuration = Field(
        30.0, description="time between two rounds of expiring idle carts and purging old rows"
    )
    reservation_timeout: ShortDuration = Field(120.0, description="maximum duration of a call to the Reservation API")
    reservation_grace: ShortDuration = Field(
        60.0, description="`basic` only: time after its timeout during which a request may still take effect"
    )
    reservation_max_in_flight: int = Field(
        1_000,
        ge=1,
        le=100_000,
        description="maximum holds with a call in flight, and the same number of releases; one call may have many",
    )
    reservation_backoff_initial: ShortDuration = Field(
        0.5, description="upper bound of the pause after a reservation's first failed attempt; it doubles"
    )
    reservation_backoff_max: ShortDuration = Field(
        60.0, description="maximum pause between two attempts of a reservation"
    )
    reservation_breaker_threshold: int = Field(
        5, ge=1, le=10_000, description="failed calls in a row after which the Reservation API counts as down"
    )
    reservation_probe_interval: ShortDuration = Field(
        1.0, description="time between two probe calls while the Reservation API counts as down"
    )
    reservation_poll_interval: ShortDuration = Field(
        0.5, description="time between two searches of the database for due reservations"
    )
    reservation_lease: Duration = Field(
        15.0,
        ge=1,
        le=3600,
        description="validity of a claim; it is extended while its call runs, or another replica takes over",
    )

    @property
    def is_embedded(self) -> bool:
        """Whether the database is a SQLite file, which only one process may use."""
        return not database_url.SCHEME.match(self.database_url.get_secret_value())

    def with_changes(self, **changes: Any) -> Self:
        """Return a copy with `changes`. The new values are not validated."""
        return self.model_copy(update=changes)

    def shown(self) -> dict[str, str]:
        """Return the settings as environment variables that can be set again, with passwords hidden."""
        return {variable_of(name): _show(name, getattr(self, name)) for name in type(self).model_fields}


def variable_of(name: str) -> str:
    """Return the environment variable of a setting."""
    return f"{PREFIX}{name.upper()}"


def find_file(settings: Settings, name: str) -> NamedFile | None:
    """Return the file that a setting names, None if it is empty."""
    path = getattr(settings, name)
    return NamedFile(variable_of(name), path) if path else None


def is_duration(name: str) -> bool:
    """Whether a setting is a duration."""
    # No other kind of setting is a float.
    return Settings.model_fields[name].annotation is float


def _show(name: str, value: Any) -> str:
    if isinstance(value, SecretStr):
        url = value.get_secret_value()
        # A checked URL of a Reservation API has no user, no password and no query.
        return database_url.parse(url).shown if database_url.SCHEME.match(url) else url
    if name == "token_keys" and "://" in value:
        # A query may have a key of the issuer's API.
        return re.sub(r"\?.*", "?***", value)
    if isinstance(value, Mapping):
        return json.dumps({key: sorted(scopes) for key, scopes in value.items()}) if value else ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(value)
    return format_duration(to_us(value)) if is_duration(name) else str(value)
