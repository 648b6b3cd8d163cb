"""No secret is in any output, at the most talkative level, whatever the settings look like."""

import base64
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from cart_grpc import app
from cart_grpc.cli import program as cli
from cart_grpc.configuration import SettingsError, load
from cart_grpc.settings import Settings
from cart_grpc.store.engine import connect
from cart_grpc.store.postgresql import PostgresqlEngine
from tests.authentication.issuer import make_token, signing_key
from tests.store.test_database_url import AMBIGUOUS

SECRET = "hunter"
# Nobody listens on port 1.
VALID = [
    "postgresql://cart:hunter2@127.0.0.1:1/shop",
    "postgresql://127.0.0.1:1/shop?user=cart&password=hunter2",
    "postgresql://cart:hunter2@127.0.0.1:1,127.0.0.1:1/shop?options=-c%20my.key%3Dhunter3",
    "postgresql://cart:p%40hunter2@127.0.0.1:1/shop?sslmode=require",
]
REFUSED = [
    *AMBIGUOUS,
    "postgresql://cart:hunter2@127.0.0.1:1/shop?channel_binding=require",
    "postgresql://cart@127.0.0.1:1/shop?sslmode=require&sslcert=nowhere&sslpassword=hunter2",
    "mysql://cart:hunter2@db/shop",
    "sqlite://cart:hunter2@db/shop",
    "grpc://cart:hunter2@db:1",
    "hunter2",
]
RESERVATION_URLS = [
    "grpc://u:hunter2@h:1", "grpc://u:hunter2", "grpc://[hunter2", "http://u:hunter2@h", "http://hunter2@h",
    "http://h?key=hunter2", "http://h#hunter2", "http://u:hunter2℀@h", "u:hunter2@h", "hunter2://h:1",
]  # fmt: skip
ELSEWHERE = ["postgresql://u:hunter2@h/d", "u:hunter2@h:5432", "host=h user=u password=hunter2"]
Output = Callable[[], str]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CART_LOG_LEVEL", "DEBUG")
    before = logging.getLogger().level
    yield tmp_path
    logging.getLogger().setLevel(before)


@pytest.fixture
def output(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Output:
    """Return all that was printed and logged so far, with the tracebacks."""
    caplog.set_level(logging.DEBUG)

    def read() -> str:
        printed = capfd.readouterr()
        return printed.out + printed.err + caplog.text

    return read


@pytest.mark.parametrize("command", ["config", "migrate"])
@pytest.mark.parametrize("url", [*VALID, *REFUSED])
def test_no_command_prints_a_part_of_the_databases_url(
    command: str, url: str, output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CART_DATABASE_URL", url)
    status = cli.main([command])
    said = output()
    assert status == (0 if command == "config" and "CART_DATABASE_URL=" in said else 2)
    assert said
    assert SECRET not in said


@pytest.mark.parametrize("url", RESERVATION_URLS)
def test_no_command_prints_a_part_of_the_reservation_apis_url(
    url: str, output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["probe", url]) == 2
    monkeypatch.setenv("CART_RESERVATION_URL", url)
    assert cli.main(["config"]) == 2
    assert SECRET not in output()


def planted() -> dict[str, tuple[str, str]]:
    """Texts that people paste into a wrong setting, and the part of each that nobody may see."""
    key = signing_key("ES256")
    pem = key.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    token, jwk = make_token(), key.to_private_jwk()
    return {
        "token": (token, token.split(".")[2]),
        "bearer token": (f"Bearer {token}", token.split(".")[2]),
        "PEM": (pem, pem.splitlines()[1]),
        "PEM on one line": (pem.replace("\n", " "), pem.splitlines()[1]),
        "JWK": (json.dumps(jwk), jwk["d"]),
        "JWK in base64": (base64.b64encode(json.dumps(jwk).encode()).decode(), "eyJ"),
        "key set": (json.dumps({"keys": [jwk]}), jwk["d"]),
    }


@pytest.mark.parametrize("name", Settings.model_fields)
def test_a_token_or_a_key_in_the_wrong_setting_is_not_printed(name: str, folder: Path) -> None:
    for kind, (value, secret) in planted().items():
        with pytest.raises(SettingsError) as refused:
            load({f"CART_{name.upper()}": value}, folder)
        assert secret not in str(refused.value), kind


@pytest.mark.parametrize("name", [name for name in Settings.model_fields if name != "database_url"])
@pytest.mark.parametrize("value", ELSEWHERE)
def test_a_url_in_the_wrong_setting_is_not_printed(name: str, value: str, folder: Path) -> None:
    with pytest.raises(SettingsError) as refused:
        load({f"CART_{name.upper()}": value}, folder)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cart.toml", "database_url = postgresql://u:hunter2@h/d"),
        ("cart.toml", 'database_url = "postgresql://u:hunter2@h/d'),
        ("cart.toml", '"postgresql://u:hunter2@h/d" = 1'),
        ("cart.toml", 'database_url = ["postgresql://u:hunter2@h/d"]'),
        ("cart.toml", '[database_url]\nurl = "postgresql://u:hunter2@h/d"'),
        ("cart.toml", "database_url = 'postgresql://u:hunter2@h/d'\ndatabase_url = 'postgresql://u:hunter2@h/d'"),
        ("cart.toml", "postgresql://u:hunter2@h/d"),
        (".env", "CART_DATABASE_URL='postgresql://u:hunter2@h:x/d"),
        (".env", "CART_DATABASE_URL postgresql://u:hunter2@h/d"),
        (".env", "CART_postgresql://u:hunter2@h/d"),
        (".env", "CART_DATABASE_LRU=postgresql://u:hunter2@h/d"),
        (".env", "CART_CONFIG_FILE=postgresql://u:hunter2@h/d"),
    ],
)
def test_an_error_in_a_file_does_not_quote_its_line(
    name: str, content: str, folder: Path, output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / name).write_text(content)
    if name == "cart.toml":
        monkeypatch.setenv("CART_CONFIG_FILE", name)
    cli.main(["config"])
    said = output()
    assert said
    assert SECRET not in said


@pytest.mark.parametrize("arguments", [["health"], ["reservations", "stats", "--address"], ["simulate", "--listen"]])
@pytest.mark.parametrize("value", ELSEWHERE)
def test_a_url_in_the_place_of_an_address_is_not_printed(arguments: list[str], value: str, output: Output) -> None:
    assert cli.main([*arguments, value]) == 2
    assert SECRET not in output()


def test_the_query_of_the_issuers_url_is_not_printed(monkeypatch: pytest.MonkeyPatch, output: Output) -> None:
    monkeypatch.setenv("CART_TOKEN_KEYS", "https://issuer.example/keys?policy=a&key=hunter2")
    assert cli.main(["config"]) == 0
    assert "CART_TOKEN_KEYS=https://issuer.example/keys?***" in (printed := output())
    assert SECRET not in printed


def test_settings_have_no_secret_in_any_text() -> None:
    settings = Settings(database_url=VALID[0])
    for text in (
        repr(settings),
        str(settings),
        repr(settings.model_dump()),
        settings.model_dump_json(),
        str(vars(settings)),
    ):
        assert SECRET not in text
    assert "postgresql://cart:***@127.0.0.1:1/shop" in settings.shown().values()


async def test_an_engine_has_no_secret_in_any_text() -> None:
    engine = connect(VALID[0], app.clock)
    assert isinstance(engine, PostgresqlEngine)
    pool = engine._writer.engine
    for text in (engine.name, repr(engine), repr(pool), repr(pool.url), pool.url.render_as_string(hide_password=False)):
        assert SECRET not in text
    await engine.close()
