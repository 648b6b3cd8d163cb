"""Settings: their sources, the precedence of the sources, and the error for a wrong setting."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cart_grpc.configuration import SettingsError, load
from cart_grpc.settings import Settings, is_duration
from cart_grpc.units import parse_duration, to_seconds

_PATHS = (["", "/etc/cart/tls.crt", "../a b/tls.key"], ["https://h/x", "u:p@h", "a=b", "-----BEGIN X-----", "a\nb"])
_CLAIMS = (["", "https://issuer.example/", "cart", "sa@project.example"], ["https://u:hunter2@h", "a b", "a\nb"])
RANGES: dict[str, tuple[list[str], list[str]]] = {
    # name: (valid values, invalid values)
    "CALL_TIMEOUT": (
        ["0.001", "1ms", "10", "10s", "PT10S", "86400", "1d"],
        ["0", "0s", "-1", "86400.1", "1d1s", "nan", "inf", "-inf", "", "ten"],
    ),
    "HOLD_TTL": (
        ["10", "15m", "1h30m", "PT15M", "86400"],
        ["0", "9", "-1", "86401", "nan", "inf", "x", "15M", "15 min"],
    ),
    "CART_TTL": (["60", "7d", "P7D", "31536000"], ["59", "31536001", "nan", "x"]),
    "REPLY_RETENTION": (["604800", "31536000"], ["604799", "31536001", "nan", "x"]),
    "RESERVATION_RETENTION": (["3600", "31536000"], ["3599", "31536001", "nan", "x"]),
    "CART_RETENTION": (["604800", "315360000"], ["604799", "315360001", "nan", "x"]),
    "MARKER_RETENTION": (["604800", "90d", "315360000"], ["604799", "315360001", "nan", "x"]),
    "CHECKOUT_RETENTION": (["604800", "90d", "315360000"], ["604799", "315360001", "nan", "x"]),
    "HOUSEKEEPING_INTERVAL": (["1", "86400"], ["0", "86401", "nan", "x"]),
    "LOG_LEVEL": (["DEBUG", "info", "Warning", "ERROR"], ["", "TRACE", "CRITICAL", "10", "DEBUG "]),
    "MAX_CALLS": (["1", "100000"], ["0", "-1", "100001", "1.5", "x"]),
    "MAX_CALLS_PER_USER": (["1", "100000"], ["0", "-1", "100001", "1.5", "x"]),
    "MAX_WAITING_CALLS": (["0", "1000000"], ["-1", "1000001", "1.5", "x"]),
    "MAX_WAITING_CALLS_PER_USER": (["0", "1000000"], ["-1", "1000001", "1.5", "x"]),
    "MAX_ITEMS_PER_CART": (["1", "10000"], ["0", "-1", "10001", "1.5", "many", "", "nan"]),
    "MAX_CART_BYTES": (["131072", "1048576"], ["131071", "1048577", "1.5", "many"]),
    "MAX_USER_BYTES": (["4194304", "1099511627776"], ["4194303", "1099511627777", "1.5", "many"]),
    "MAX_CARTS_PER_USER": (["1", "1000000"], ["0", "-1", "1000001", "1.5", "many"]),
    "MAX_ITEMS_PER_USER": (["1", "10000000"], ["0", "-1", "10000001", "1.5", "many"]),
    "MAX_UNITS_PER_USER": (["1", "1000000000"], ["0", "-1", "1000000001", "1.5", "many"]),
    "MAX_QUANTITY_PER_ADD": (["1", "1000000"], ["0", "-1", "1000001", "1.5", "many"]),
    "MAX_QUANTITY_PER_ITEM": (["1", "1000000"], ["0", "-1", "1000001", "1.5", "many"]),
    "RESERVATION_BACKOFF_INITIAL": (["0.001", "86400"], ["0", "-1", "86401", "nan", "x"]),
    "RESERVATION_BACKOFF_MAX": (["1", "86400"], ["0", "-1", "86401", "nan", "x"]),
    "RESERVATION_BREAKER_THRESHOLD": (["1", "10000"], ["0", "-1", "10001", "1.5", "x"]),
    "RESERVATION_GRACE": (["0.5", "86400"], ["0", "-1", "86401", "nan", "x"]),
    "RESERVATION_LEASE": (["1", "15", "3600"], ["0.9", "0", "-1", "3601", "nan", "x"]),
    "RESERVATION_MAX_IN_FLIGHT": (["1", "100000"], ["0", "-1", "100001", "1.5", "x"]),
    "RESERVATION_POLL_INTERVAL": (["0.01", "86400"], ["0", "-1", "86401", "nan", "x"]),
    "RESERVATION_PROBE_INTERVAL": (["0.5", "86400"], ["0", "-1", "86401", "nan", "x"]),
    "RESERVATION_TIMEOUT": (["1", "86400"], ["0", "-1", "86401", "nan", "x"]),
    "LAME_DUCK": (["0", "3600"], ["-1", "3601", "nan"]),
    "SHUTDOWN_GRACE": (["0", "3600"], ["-0.1", "3601", "nan", "x"]),
    "WRITE_QUEUE_SIZE": (["1", "1000000"], ["0", "-1", "1000001", "x"]),
    "LISTEN": (
        ["", "127.0.0.1:50051", "[::]:0", "0.0.0.0:65535", "cart.example:1"],
        ["50051", ":50051", "127.0.0.1", "127.0.0.1:", "127.0.0.1:http", "h:65536", "h:-1", "h:٣", "h:1 ", "h:²"],
    ),
    "ADMIN_LISTEN": (["", "127.0.0.1:50052", "[::1]:0"], ["50052", ":50052", "127.0.0.1", "h:65536", " "]),
    "SERVICE_LISTEN": (["", "0.0.0.0:50053"], ["50053", ":50053", "127.0.0.1", "h:65536", " "]),
    "HEALTH_LISTEN": (["", "0.0.0.0:50059"], ["50059", ":50059", "127.0.0.1", "h:65536", " "]),
    "METRICS_LISTEN": (["", "0.0.0.0:9464"], ["9464", ":9464", "127.0.0.1", "h:65536", " "]),
    "LOG_FORMAT": (["auto", "text", "json"], ["", "xml", "JSON"]),
    "LOG_CALLS": (["off", "refused", "all"], ["", "none", "true"]),
    "SLOW_CALL": (["0.001", "1s", "86400"], ["0", "-1", "86401", "nan", "x"]),
    "ALLOW_ANYONE_TO_BE_ANY_USER": (["true", "false", "1", "0"], ["", "maybe", "2"]),
    "REFLECTION": (["auto", "on", "off"], ["", "yes", "true"]),
    "COMPAT": (["", "oteldemo", "oteldemo, hipstershop eshop", "eshop,"], ["opentelemetry", "eshop,shop"]),
    "SERVICES": (
        ["", "{}", '{"spiffe://shop.example/web": ["carts.read", "carts.act-as"], "ops.example": ["admin.write"]}'],
        ["web", "[]", "1", '{"web": "carts.read"}', '{"web": ["carts"]}', '{"": ["carts.read"]}', '{"web": [[]]}'],
    ),
    "TLS_CERT_FILE": _PATHS,
    "TLS_KEY_FILE": _PATHS,
    "CLIENT_CA_FILE": _PATHS,
    "DATABASE_PASSWORD_FILE": _PATHS,
    "DATABASE_SHARDS": (["1", "4", "128"], ["", "0", "3", "256", "-4", "x"]),
    "RESERVATION_CA_FILE": _PATHS,
    "RESERVATION_CERT_FILE": _PATHS,
    "RESERVATION_KEY_FILE": _PATHS,
    "RESERVATION_TOKEN_FILE": _PATHS,
    "TOKEN_KEYS": (
        ["", "/etc/cart/keys.json", "file:///etc/cart/keys.json", "https://issuer.example/jwks.json?p=1"],
        ["http://issuer.example/jwks.json", "ftp://h/k", "https://u:hunter2@h/k", "host=h password=hunter2"],
    ),
    "TOKEN_ISSUER": _CLAIMS,
    "TOKEN_AUDIENCE": _CLAIMS,
    "TOKEN_ALGORITHMS": (["RS256", "ES256, PS512", "EdDSA ES384"], ["", "none", "HS256", "RS256,HS256", "rs256"]),
    "TOKEN_LEEWAY": (["0", "10s", "30"], ["-1", "31", "nan", "x"]),
    "MAX_CALLS_PER_SERVICE": (["1", "100000"], ["0", "-1", "100001", "1.5", "x"]),
    "RESERVATION_URL": (
        ["grpc://h:1", "grpcs://h:1", "http://h", "https://h/prefix", "basic+http://h", "basic+https://h/prefix"],
        ["", "h:1", "ftp://h:1", "grpc://h", "http://", "http://u:hunter2@h", "http://h?x=hunter2"],
    ),
    "DATABASE_URL": (
        ["sqlite:///cart.db", "postgresql://u:p@h:5432/d", "postgresql+asyncpg://h/d", "postgresql:///d?host=/tmp"],
        [
            "",
            "cart.db",
            "sqlite://",
            "sqlite:///",
            "sqlite:///:memory:",
            "mysql://u:hunter2@h/d",
            "postgresql://u:hunter2@h:x/d",
        ],
    ),
}
# "nonsense" is a valid value of these.
ANY_WORD = {name for name, values in RANGES.items() if values in (_PATHS, _CLAIMS)} | {"TOKEN_KEYS"}
# How a value of these settings is read.
READ: dict[str, Callable[[str], Any]] = {
    "ALLOW_ANYONE_TO_BE_ANY_USER": lambda value: value in ("true", "1"),
    "COMPAT": lambda value: tuple(value.replace(",", " ").split()),
    "LOG_LEVEL": str.upper,
    "SERVICES": lambda value: {name: frozenset(scopes) for name, scopes in json.loads(value or "{}").items()},
    "TOKEN_ALGORITHMS": lambda value: tuple(value.replace(",", " ").split()),
}
# The hint that the error for a wrong value contains.
HINTS = {
    "ADMIN_LISTEN": "must be HOST:PORT, such as 127.0.0.1:50051",
    "LISTEN": "must be HOST:PORT, such as 127.0.0.1:50051",
    "RESERVATION_URL": "it must be grpc://HOST:PORT, grpcs://HOST:PORT, http://HOST:PORT[/PREFIX] or https://",
    "LOG_LEVEL": "must be 'DEBUG', 'INFO', 'WARNING' or 'ERROR'",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def refusal(environ: dict[str, str], folder: Path) -> str:
    """Load settings that must be refused, and return the error's text."""
    with pytest.raises(SettingsError) as caught:
        load(environ, folder)
    text = str(caught.value)
    assert text.isprintable(), "the error has more than one line"
    return text


def test_every_setting_has_valid_and_invalid_values_in_the_table() -> None:
    assert set(RANGES) == {name.upper() for name in Settings.model_fields}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, (valid, _) in RANGES.items() for value in valid])
def test_a_valid_value_is_accepted(name: str, value: str, folder: Path) -> None:
    seen = getattr(load({f"CART_{name}": value}, folder), name.lower())
    if is_duration(name.lower()):
        assert seen == to_seconds(parse_duration(value))
    elif name in READ:
        assert seen == READ[name](value)
    else:
        assert seen == type(seen)(value)


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, (_, invalid) in RANGES.items() for value in invalid]
)
def test_an_invalid_value_is_refused_in_one_line_that_names_the_setting(name: str, value: str, folder: Path) -> None:
    text = refusal({f"CART_{name}": value}, folder)
    assert text.startswith(f"CART_{name}: ")
    assert "must be" in text or "must name a file" in text
    if is_duration(name.lower()):
        assert "must be a duration such as 90, 90s" in text or re.search(r"must be (at \w+|more than) \d+[dhms]", text)
    assert HINTS.get(name, "") in text
    assert "hunter2" not in text
    assert "Value error" not in text


@pytest.mark.parametrize("name", [name for name in RANGES if "URL" not in name and name not in ANY_WORD])
def test_the_error_shows_the_invalid_value(name: str, folder: Path) -> None:
    assert "nonsense" in refusal({f"CART_{name}": "nonsense"}, folder).lower()


def test_a_value_with_line_breaks_is_refused_in_one_line(folder: Path) -> None:
    assert "CART_LISTEN" in refusal({"CART_LISTEN": "a\nb\x1b[31m"}, folder)


@pytest.mark.parametrize("name", ["listen", "log_level", "max_items_per_cart", "reservation_url"])
def test_the_error_for_an_invalid_value_in_a_file_names_the_setting(name: str, folder: Path) -> None:
    (folder / "cart.toml").write_text(f'{name} = "nonsense"\n')
    assert refusal({"CART_CONFIG_FILE": "cart.toml"}, folder).startswith(f"CART_{name.upper()}: ")


@pytest.mark.parametrize("value", ["5", "[1]", "{a = 1}", "true", "1979-05-27"])
def test_a_value_of_the_wrong_type_in_a_file_is_refused_in_one_line(value: str, folder: Path) -> None:
    (folder / "cart.toml").write_text(f"listen = {value}\n")
    assert "must be" in refusal({"CART_CONFIG_FILE": "cart.toml"}, folder)


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("CART_LISTN", "did you mean CART_LISTEN?"),
        ("CART_DATABASE_LRU", "did you mean CART_DATABASE_URL?"),
        ("CART_RESERVATION_TIMEOUTS", "did you mean CART_RESERVATION_TIMEOUT?"),
    ],
)
@pytest.mark.parametrize("source", ["the environment", ".env", "cart.toml"])
def test_the_error_for_a_misspelt_setting_names_its_source_and_suggests_the_right_name(
    name: str, suggestion: str, source: str, folder: Path
) -> None:
    environ: dict[str, str] = {}
    if source == "the environment":
        environ[name] = "hunter2"
    elif source == ".env":
        (folder / ".env").write_text(f"{name}=hunter2\n")
    else:
        environ["CART_CONFIG_FILE"] = "cart.toml"
        (folder / "cart.toml").write_text(f'{name.removeprefix("CART_").lower()} = "hunter2"\n')
    text = refusal(environ, folder)
    if source == "cart.toml":
        # In a file, names are in lower case and without the prefix.
        name = name.removeprefix("CART_").lower()
        suggestion = re.sub(r"CART_(\w+)", lambda match: match[1].lower(), suggestion)
    assert text.startswith(f"{name} in ")
    assert source in text
    assert text.endswith(suggestion)
    assert "hunter2" not in text


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        # Demos and compose files use these names for their own services.
        ("CART_ADDR", "`cart-grpc config` lists all settings"),
        ("CART_SERVICE_ADDR", "did you mean CART_SERVICES?"),
        ("CART_DOCKERFILE", "did you mean CART_TLS_CERT_FILE?"),
        ("CART_DATABASE", "did you mean CART_DATABASE_URL?"),
    ],
)
@pytest.mark.parametrize("source", ["the environment", ".env"])
def test_another_programs_variable_is_ignored_with_a_warning(
    name: str, suggestion: str, source: str, folder: Path
) -> None:
    environ: dict[str, str] = {}
    if source == "the environment":
        environ[name] = "hunter2"
    else:
        (folder / ".env").write_text(f"{name}=hunter2\n")
    warnings: list[str] = []
    assert load(environ, folder, warnings.append) == Settings()
    assert warnings == [f"ignored: {name} in {source} is not a setting; {suggestion}"]


def test_an_unknown_name_in_the_file_is_refused_because_the_file_is_ours(folder: Path) -> None:
    (folder / "cart.toml").write_text('addr = "hunter2"\n')
    text = refusal({"CART_CONFIG_FILE": "cart.toml"}, folder)
    assert text == "addr in cart.toml is not a setting; `cart-grpc config` lists all settings"


@pytest.mark.parametrize("written", ["LISTEN", "CART_LISTEN", "cart_listen", "Listen"])
def test_the_error_for_a_name_in_a_file_written_as_a_variable_suggests_the_right_spelling(
    written: str, folder: Path
) -> None:
    (folder / "cart.toml").write_text(f'{written} = "127.0.0.1:1"\n')
    text = refusal({"CART_CONFIG_FILE": "cart.toml"}, folder)
    assert written in text
    assert "listen" in text.replace(written, "")


def test_names_without_the_prefix_are_ignored(folder: Path) -> None:
    (folder / ".env").write_text("CARTLISTEN=x\nPATH=x\n")
    assert load({"LISTEN": "x", "CARTS_LISTEN": "x"}, folder) == Settings()


def test_the_environment_overrides_dotenv_which_overrides_the_file(folder: Path) -> None:
    (folder / "cart.toml").write_text('log_level = "ERROR"\nlisten = "file:1"\nmax_items_per_cart = 7\n')
    (folder / ".env").write_text("CART_LOG_LEVEL=WARNING\nCART_LISTEN=dotenv:1\n")
    seen = load({"CART_CONFIG_FILE": "cart.toml", "CART_LOG_LEVEL": "DEBUG"}, folder)
    assert (seen.log_level, seen.listen, seen.max_items_per_cart) == ("DEBUG", "dotenv:1", 7)
    assert seen.write_queue_size == Settings().write_queue_size


def test_dotenv_can_name_the_file_and_the_environment_overrides_it(folder: Path) -> None:
    (folder / "one.toml").write_text('listen = "one:1"\n')
    (folder / "other.toml").write_text('listen = "other:1"\n')
    (folder / ".env").write_text("CART_CONFIG_FILE=one.toml\n")
    assert load({}, folder).listen == "one:1"
    assert load({"CART_CONFIG_FILE": "other.toml"}, folder).listen == "other:1"


def test_variables_may_be_in_lower_case(folder: Path) -> None:
    assert load({"cart_listen": "h:1"}, folder).listen == "h:1"


def test_without_any_source_the_defaults_apply(folder: Path) -> None:
    assert load({}, folder) == Settings()
    assert Settings().is_embedded


def test_the_path_of_the_file_is_relative_to_the_folder_or_absolute(folder: Path, tmp_path_factory: Any) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "cart.toml"
    elsewhere.write_text('listen = "h:1"\n')
    assert load({"CART_CONFIG_FILE": str(elsewhere)}, folder).listen == "h:1"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"\xff\xfe", "cannot be read: it is not UTF-8"),
        (b"listen = [", "is not TOML"),
        (b"CART_LISTEN=h:1", "is not TOML"),
        (b"listen = 'a'\nlisten = 'b'", "is not TOML"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_in_one_line(content: bytes | None, why: str, folder: Path) -> None:
    if content is not None:
        (folder / "cart.toml").write_bytes(content)
    text = refusal({"CART_CONFIG_FILE": "cart.toml"}, folder)
    assert "CART_CONFIG_FILE" in text
    assert why in text


def test_a_directory_in_place_of_the_file_is_refused_in_one_line(folder: Path) -> None:
    assert "Is a directory" in refusal({"CART_CONFIG_FILE": "."}, folder)


def test_a_dotenv_that_is_not_utf_8_is_refused_in_one_line(folder: Path) -> None:
    (folder / ".env").write_bytes(b"CART_LISTEN=\xff\xfe\n")
    assert ".env" in refusal({}, folder)


def test_a_name_without_a_value_in_dotenv_has_an_empty_value(folder: Path) -> None:
    (folder / ".env").write_text("CART_LISTEN\n")
    assert load({}, folder).listen == ""


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://cart:hunter2@db:5432/cart",
        "postgresql+asyncpg://cart:hunter2@db/cart?ssl=require",
        "postgresql://db/cart?user=cart&password=hunter2",
    ],
)
def test_shown_settings_contain_no_password(url: str, folder: Path) -> None:
    shown = load({"CART_DATABASE_URL": url}, folder).shown()
    assert "hunter2" not in str(shown)
    assert "db" in shown["CART_DATABASE_URL"]


def test_shown_settings_can_be_loaded_as_the_environment(folder: Path) -> None:
    seen = load({"CART_LISTEN": "h:1", "CART_CALL_TIMEOUT": "2.5", "CART_HOLD_TTL": "PT1H30M"}, folder)
    shown = seen.shown()
    assert load(shown, folder) == seen
    assert (shown["CART_CALL_TIMEOUT"], shown["CART_HOLD_TTL"], shown["CART_CART_TTL"]) == ("2.5s", "1h30m", "7d")


def test_settings_are_immutable() -> None:
    with pytest.raises(ValueError, match="frozen"):
        setattr(Settings(), "listen", "h:1")  # noqa: B010 - a plain assignment is a type error


def test_with_changes_returns_a_copy() -> None:
    before = Settings()
    assert before.with_changes(listen="h:1").listen == "h:1"
    assert before == Settings()


@pytest.mark.parametrize(
    "name", ["CART_PORT", "CART_SERVICE_HOST", "CART_GRPC_SERVICE_PORT_GRPC", "CART_PORT_50051_TCP_ADDR"]
)
def test_variables_that_kubernetes_adds_for_a_service_named_cart_are_ignored(name: str, folder: Path) -> None:
    assert load({name: "tcp://10.0.0.1:50051"}, folder).listen == "127.0.0.1:50051"
