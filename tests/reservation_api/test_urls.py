"""The URLs that name a Reservation API, and the error for every other URL."""

import pytest

from cart_grpc.reservation_api.transports import check_url, connect


@pytest.mark.parametrize(
    "url",
    [
        "grpc://localhost:50052",
        "grpcs://reservations.example:443",
        "http://127.0.0.1:8080",
        "http://example",
        "https://example/shop/reservations/",
        "grpc://[::1]:50052",
        "http://[::1]:80/x",
        "basic+http://127.0.0.1:50062/basic",
        "basic+https://example",
    ],
)
async def test_a_url_of_a_known_transport_is_accepted(url: str) -> None:
    assert check_url(url) == url
    await connect(url).close()


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "the scheme is missing or unknown"),
        ("localhost:50052", "the scheme is missing or unknown"),
        ("ftp://host:1", "the scheme is missing or unknown"),
        ("basic+grpc://host:1", "the scheme is missing or unknown"),
        ("grpc://host", "the port is missing"),
        ("grpc://:50052", "the host is missing"),
        ("http://", "the host is missing"),
        ("grpc://host:0", "the port is missing"),
        ("grpc://host:99999", "the host or the port is malformed"),
        ("grpc://host:abc", "the host or the port is malformed"),
        ("grpc://host:1/prefix", "no path"),
        ("http://user:secret@host", "a user or a password"),
        ("http://host?x=1", "a query"),
        ("http://host/#x", "a fragment"),
        ("http://host name", "spaces"),
        ("http://ho\x00st", "control characters"),
        ("http://[::1", "the host or the port is malformed"),
    ],
)
def test_the_error_for_an_invalid_url_says_what_is_right(url: str, why: str) -> None:
    with pytest.raises(ValueError, match=r"it must be grpc://HOST:PORT") as caught:
        check_url(url)
    assert why in str(caught.value)
    assert "secret" not in str(caught.value)
