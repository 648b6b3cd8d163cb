"""Certificates that TLS has verified, but that cannot be read: their callers are nobody."""

import base64

import trustme

from cart_grpc.authentication.caller import NOBODY
from cart_grpc.authentication.services import Services

NAME = "web.shop.example"
SERVICES = Services({NAME: frozenset({"carts"})})
# The version of a certificate is X.509 version 3, which is written as 2.
VERSION = b"\xa0\x03\x02\x01\x02"


def test_a_certificate_with_an_unknown_version_is_nobody() -> None:
    pem = trustme.CA().issue_cert(NAME).cert_chain_pems[0].bytes()
    assert SERVICES.caller_of(pem).service == NAME
    lines = pem.splitlines()
    der = base64.b64decode(b"".join(lines[1:-1]))
    assert der.count(VERSION) == 1
    other = base64.encodebytes(der.replace(VERSION, VERSION[:-1] + b"\x12"))
    assert SERVICES.caller_of(b"\n".join((lines[0], other.strip(), lines[-1], b""))) is NOBODY
