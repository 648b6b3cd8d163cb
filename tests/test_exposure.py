"""Which settings a process may start with: the ports that it opens, and the line that refuses it."""

from typing import Any

import pytest

from cart_grpc.exposure import DEFAULT_HEALTH_ADDRESS, Port, find_ports, find_risks, health_address, offers_reflection
from cart_grpc.settings import Settings
from cart_grpc.startup import StartupError

LOCAL, REMOTE = "127.0.0.1:50051", "10.0.0.7:50051"
TLS = {"tls_cert_file": "c.pem", "tls_key_file": "k.pem"}
TOKENS = {"token_keys": "keys.json", "token_issuer": "https://issuer.example", "token_audience": "cart"}
SHOP = {"spiffe://shop.example/web": ["carts.read", "carts.write"]}
OPERATORS = {"ops.example": ["admin.read"]}
SERVICES = {**TLS, "client_ca_file": "ca.pem", "service_listen": "0.0.0.0:50053", "services": SHOP}
ANYONE = {"allow_anyone_to_be_any_user": True}
HEALTH = Port("health_listen", DEFAULT_HEALTH_ADDRESS)


@pytest.mark.parametrize(
    ("settings", "ports"),
    [
        ({}, [Port("listen", LOCAL)]),
        ({"listen": REMOTE, **ANYONE}, [Port("listen", REMOTE)]),
        ({"listen": REMOTE, **TOKENS}, [Port("listen", REMOTE, "token")]),
        ({"listen": REMOTE, **TOKENS, **TLS}, [Port("listen", REMOTE, "token", tls=True), HEALTH]),
        (TLS, [Port("listen", LOCAL, tls=True), HEALTH]),
        ({**TLS, "health_listen": REMOTE}, [Port("listen", LOCAL, tls=True), Port("health_listen", REMOTE)]),
        ({"health_listen": REMOTE}, [Port("listen", LOCAL), Port("health_listen", REMOTE)]),
        ({**SERVICES, "listen": ""}, [Port("service_listen", "0.0.0.0:50053", "certificate", tls=True), HEALTH]),
        (
            {**SERVICES, **TOKENS, "listen": REMOTE},
            [
                Port("listen", REMOTE, "token", tls=True),
                Port("service_listen", "0.0.0.0:50053", "certificate", tls=True),
                HEALTH,
            ],
        ),
        ({"admin_listen": "[::1]:1"}, [Port("listen", LOCAL), Port("admin_listen", "[::1]:1")]),
        (
            {**TLS, "client_ca_file": "ca.pem", "services": OPERATORS, "admin_listen": REMOTE},
            [Port("listen", LOCAL, tls=True), Port("admin_listen", REMOTE, "certificate", tls=True), HEALTH],
        ),
    ],
    ids=str,
)
def test_a_process_opens_these_ports(settings: dict[str, Any], ports: list[Port]) -> None:
    assert list(find_ports(Settings(**settings), serve=True)) == ports


@pytest.mark.parametrize(
    ("settings", "ports"),
    [
        ({"listen": REMOTE}, []),
        (TLS, []),
        (
            {"admin_listen": LOCAL, "health_listen": REMOTE},
            [Port("admin_listen", LOCAL), Port("health_listen", REMOTE)],
        ),
    ],
    ids=str,
)
def test_a_process_that_does_not_serve_opens_no_port_for_callers(settings: dict[str, Any], ports: list[Port]) -> None:
    assert list(find_ports(Settings(**settings), serve=False)) == ports


@pytest.mark.parametrize("host", ["127.0.0.1", "127.255.255.254", "localhost", "LocalHost", "[::1]"])
def test_without_identities_a_server_may_listen_on_loopback(host: str) -> None:
    assert find_ports(Settings(listen=f"{host}:1"), serve=True) == (Port("listen", f"{host}:1"),)


@pytest.mark.parametrize(
    "host",
    ["0.0.0.0", "[::]", "10.0.0.7", "h.example", "127.0.0.1.example", "localhost.example", "128.0.0.1", "[fe80::1]"],  # noqa: S104 - not bound
)
@pytest.mark.parametrize("tls", [{}, TLS], ids=["plaintext", "tls"])
def test_beyond_loopback_a_server_without_identities_names_both_ways_out(host: str, tls: dict[str, Any]) -> None:
    with pytest.raises(StartupError) as refused:
        find_ports(Settings(listen=f"{host}:1", **tls), serve=True)
    text = str(refused.value)
    assert text.startswith(f"CART_LISTEN: {host}:1 is beyond loopback")
    assert "CART_TOKEN_KEYS" in text
    assert "CART_ALLOW_ANYONE_TO_BE_ANY_USER=true" in text


def without(settings: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key != name}


@pytest.mark.parametrize(
    ("settings", "start"),
    [
        ({"listen": ""}, "CART_LISTEN: must be HOST:PORT"),
        ({"tls_key_file": "k.pem"}, "CART_TLS_CERT_FILE: must be set, because CART_TLS_KEY_FILE is"),
        ({"tls_cert_file": "c.pem"}, "CART_TLS_KEY_FILE: must be set, because CART_TLS_CERT_FILE is"),
        (without(TOKENS, "token_issuer"), "CART_TOKEN_ISSUER: must be set, because CART_TOKEN_KEYS is"),
        (without(TOKENS, "token_audience"), "CART_TOKEN_AUDIENCE: must be set, because CART_TOKEN_KEYS is"),
        (without(TOKENS, "token_keys"), "CART_TOKEN_KEYS: must be set, because CART_TOKEN_ISSUER is"),
        ({"token_audience": "cart"}, "CART_TOKEN_KEYS: must be set, because CART_TOKEN_AUDIENCE is"),
        ({**SERVICES, **TOKENS, "listen": ""}, "CART_LISTEN: must be set, because CART_TOKEN_KEYS is"),
        ({**TOKENS, **ANYONE}, "CART_ALLOW_ANYONE_TO_BE_ANY_USER: must be false, because CART_TOKEN_KEYS is set"),
        (without(SERVICES, "client_ca_file"), "CART_CLIENT_CA_FILE: must be set, because CART_SERVICES is"),
        (without(SERVICES, "services"), "CART_SERVICES: must be set, because CART_CLIENT_CA_FILE is"),
        ({"service_listen": LOCAL}, "CART_TLS_CERT_FILE: must be set, because CART_SERVICE_LISTEN is set"),
        ({"service_listen": LOCAL, **TLS}, "CART_CLIENT_CA_FILE: must be set, because CART_SERVICE_LISTEN is set"),
        (without(SERVICES, "service_listen"), "CART_SERVICES: needs CART_SERVICE_LISTEN, or CART_ADMIN_LISTEN beyond"),
        ({**SERVICES, "services": OPERATORS}, "CART_SERVICES: must give a service carts.read or carts.write"),
        ({"admin_listen": REMOTE, **ANYONE}, "CART_TLS_CERT_FILE: must be set, because CART_ADMIN_LISTEN is beyond"),
        ({"admin_listen": REMOTE, **TLS}, "CART_CLIENT_CA_FILE: must be set, because CART_ADMIN_LISTEN is beyond"),
        ({**SERVICES, "admin_listen": REMOTE}, "CART_SERVICES: must give a service admin.read or admin.write"),
        ({**SERVICES, "listen": REMOTE}, "CART_LISTEN: 10.0.0.7:50051 is beyond loopback"),
    ],
    ids=str,
)
def test_settings_that_do_not_go_together_are_refused_in_one_line(settings: dict[str, Any], start: str) -> None:
    with pytest.raises(StartupError) as refused:
        find_ports(Settings(**settings), serve=True)
    assert str(refused.value).startswith(start)
    assert str(refused.value).isprintable()


def test_the_operators_port_beyond_loopback_needs_certificates_in_a_process_that_only_reconciles() -> None:
    with pytest.raises(StartupError, match=r"^CART_TLS_CERT_FILE: must be set, because CART_ADMIN_LISTEN is beyond"):
        find_ports(Settings(admin_listen=REMOTE), serve=False)


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({"listen": REMOTE, **TOKENS}, 1),
        ({"listen": REMOTE, **TOKENS, **TLS}, 0),
        (TOKENS, 0),
        ({"listen": REMOTE, **ANYONE}, 0),
    ],
    ids=str,
)
def test_tokens_on_a_network_without_tls_are_a_risk(settings: dict[str, Any], count: int) -> None:
    risks = find_risks(find_ports(Settings(**settings), serve=True))
    assert len(risks) == count
    assert all(risk.startswith("CART_LISTEN: tokens cross the network unencrypted") for risk in risks)


@pytest.mark.parametrize(
    ("settings", "address"),
    [
        ({}, LOCAL),
        ({"health_listen": REMOTE}, REMOTE),
        (TLS, DEFAULT_HEALTH_ADDRESS),
        ({**SERVICES, "listen": ""}, DEFAULT_HEALTH_ADDRESS),
        ({"listen": REMOTE, **TOKENS}, REMOTE),
    ],
    ids=str,
)
def test_health_can_always_be_asked_for_in_plaintext(settings: dict[str, Any], address: str) -> None:
    assert health_address(Settings(**settings)) == address


@pytest.mark.parametrize("identities", [{}, TOKENS, SERVICES], ids=["nobody", "tokens", "services"])
@pytest.mark.parametrize("reflection", ["auto", "on", "off"])
def test_reflection_is_off_by_default_when_identities_are_on(reflection: str, identities: dict[str, Any]) -> None:
    expected = {"on": True, "off": False, "auto": not identities}[reflection]
    assert offers_reflection(Settings(reflection=reflection, **identities)) == expected
