"""The environment of the demos' containers: none of it prevents a start, and CART_PORT is the port."""

from collections.abc import Mapping
from pathlib import Path

import grpc
import pytest

from cart_grpc import app
from cart_grpc.configuration import load
from cart_grpc.exposure import find_ports
from cart_grpc.settings import Settings
from cart_grpc.startup import StartupError
from tests.compat.conftest import Shop
from tests.ports import free_port

THEIRS = {
    "CART_ADDR": "cart:7070",
    "CART_SERVICE_ADDR": "cartservice:7070",
    "REDIS_ADDR": "redis-cart:6379",
    "VALKEY_ADDR": "valkey-cart:6379",
    "FLAGD_HOST": "flagd",
    "FLAGD_PORT": "8013",
    "OTEL_SERVICE_NAME": "cart",
    "OTEL_RESOURCE_ATTRIBUTES": "service.namespace=opentelemetry-demo,service.version=2.0",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "http://otel-collector:4317",
    "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": "cumulative",
    "CART_PORT": "7070",
}
ANYONE = {"CART_ALLOW_ANYONE_TO_BE_ANY_USER": "true"}
KEYS = {"CART_TOKEN_KEYS": "keys.json", "CART_TOKEN_ISSUER": "https://issuer.example", "CART_TOKEN_AUDIENCE": "cart"}


def read(environ: Mapping[str, str], folder: Path) -> tuple[Settings, list[str]]:
    """The settings, and the warnings."""
    warnings: list[str] = []
    return load({"CART_COMPAT": "oteldemo,hipstershop", **environ}, folder, warnings.append), warnings


@pytest.mark.parametrize("variable", THEIRS)
def test_no_variable_of_the_demos_prevents_a_start_or_needs_a_warning(variable: str, tmp_path: Path) -> None:
    settings, warnings = read({**ANYONE, variable: THEIRS[variable]}, tmp_path)
    assert find_ports(settings, serve=True)
    assert warnings == []


@pytest.mark.parametrize("safe", [ANYONE, KEYS], ids=["anyone", "tokens"])
def test_their_port_is_used_on_all_interfaces(safe: dict[str, str], tmp_path: Path) -> None:
    settings, warnings = read({**safe, "CART_PORT": "7070"}, tmp_path)
    assert settings.listen == "0.0.0.0:7070"
    assert find_ports(settings, serve=True)[0].address == settings.listen
    assert warnings == []


def test_their_port_is_used_on_loopback_if_strangers_could_be_any_user(tmp_path: Path) -> None:
    settings, (warning,) = read({"CART_PORT": "7070"}, tmp_path)
    assert settings.listen == "127.0.0.1:7070"
    assert warning.startswith("CART_PORT=7070 is used on 127.0.0.1 only")


def test_their_port_may_be_in_the_file_env(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("CART_PORT=7070\n")
    assert read(ANYONE, tmp_path)[0].listen == "0.0.0.0:7070"


@pytest.mark.parametrize("port", ["", "0", "65536", "99999999", "-1", "x", "tcp://10.0.0.1:7070", "٣"])
def test_a_port_that_is_no_port_is_ignored(port: str, tmp_path: Path) -> None:
    assert read({**ANYONE, "CART_PORT": port}, tmp_path)[0].listen == "127.0.0.1:50051"


def test_our_own_setting_goes_first(tmp_path: Path) -> None:
    environ = {**ANYONE, "CART_PORT": "7070", "CART_LISTEN": "127.0.0.1:50055"}
    assert read(environ, tmp_path)[0].listen == "127.0.0.1:50055"


@pytest.mark.parametrize("compat", ["", "oteldemo"])
def test_their_port_counts_only_with_their_services(compat: str, tmp_path: Path) -> None:
    listen = load({**ANYONE, "CART_COMPAT": compat, "CART_PORT": "7070"}, tmp_path).listen
    assert (listen == "0.0.0.0:7070") == bool(compat)


UNUSABLE = {
    "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json",
    "OTEL_TRACES_EXPORTER": "zipkin",
    "OTEL_METRICS_EXPORTER": "prometheus",
}


@pytest.mark.parametrize("variable", UNUSABLE)
async def test_a_server_starts_in_their_environment(
    variable: str, user: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    quick = {"CART_LAME_DUCK": "0", "CART_SHUTDOWN_GRACE": "0.2", "CART_DATABASE_URL": f"sqlite:///{tmp_path}/cart.db"}
    theirs = {**THEIRS, "OTEL_EXPORTER_OTLP_ENDPOINT": "", "CART_PORT": str(port), variable: UNUSABLE[variable]}
    if variable == "OTEL_EXPORTER_OTLP_PROTOCOL":
        theirs["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://127.0.0.1:1"
    for name, value in theirs.items():
        monkeypatch.setenv(name, value)
    settings, _ = read({**quick, **theirs}, tmp_path)
    async with (
        app.running(settings, serve=True, reconcile=False),
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        await Shop(channel).demo("oteldemo").add(user, "tea", 1)
    with pytest.raises(StartupError, match=variable):
        async with app.running(settings.with_changes(compat=()), serve=True, reconcile=False):
            pass
