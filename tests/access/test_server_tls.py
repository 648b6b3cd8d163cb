"""The files of a server's TLS: which are refused and why, and when a certificate is about to expire."""

import datetime as dt
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from cart_grpc.metrics import CERTIFICATE_EXPIRY
from cart_grpc.tls.reloaded_files import FileError, NamedFile
from cart_grpc.tls.server import ServerTls
from tests.counting import value_of
from tests.pem import NOW, PemFolder, issue, new_authority

AUTHORITY = new_authority()
ISSUED = issue(AUTHORITY)
KEY, CHAIN = ISSUED.private_key_pem.bytes(), ISSUED.cert_chain_pems[0].bytes()


def encrypted() -> bytes:
    return load_pem_private_key(KEY, None).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"hunter2")
    )


def pair_with(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey) -> tuple[bytes, bytes]:
    """A key and a certificate for it, which the key signs itself."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "cart")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(7).not_valid_before(NOW).not_valid_after(NOW + dt.timedelta(days=1))
    signed = builder.sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else SHA256())
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), signed.public_bytes(Encoding.PEM)


def opened(folder: Path, key: bytes, chain: bytes, authorities: bytes | None = None, **more: object) -> ServerTls:
    files = PemFolder(folder)
    given = files.write("authorities", authorities) if authorities is not None else None
    return ServerTls(files.write("chain", chain), files.write("key", key), given, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (lambda: (encrypted(), CHAIN), "key: the key is encrypted"),
        (lambda: (issue(AUTHORITY).private_key_pem.bytes(), CHAIN), "key: it is not the key of the first certificate"),
        (lambda: (CHAIN, CHAIN), "key: it is not a PEM file with a private key"),
        (lambda: (KEY, KEY), "chain: it is not a PEM file with certificates"),
        (lambda: (KEY[:100], CHAIN), "key: it is not a PEM file with a private key"),
        (lambda: (KEY, CHAIN[:300]), "chain: it is not a PEM file with certificates"),
        (lambda: (KEY, CHAIN + b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), "chain: it is not"),
        (lambda: (b"", b""), "chain: it is not a PEM file with certificates"),
        (lambda: pair_with(ec.generate_private_key(ec.SECP521R1())), "key: the key must be RSA of at least"),
        (lambda: pair_with(ed25519.Ed25519PrivateKey.generate()), "key: the key must be RSA of at least"),
        (lambda: pair_with(rsa.generate_private_key(65_537, 1024)), "key: the key must be RSA of at least"),  # noqa: S505
        (lambda: (KEY, CHAIN, b"hunter2"), "authorities: it is not a PEM file with certificates"),
    ],
)
def test_unusable_files_are_refused_in_one_line_without_their_content(
    make: Callable[[], tuple[bytes, ...]], fault: str, tmp_path: Path
) -> None:
    with pytest.raises(FileError) as refused:
        opened(tmp_path, *make())
    text = str(refused.value)
    assert text.startswith(fault)
    assert text.isprintable()
    assert "hunter2" not in text
    assert "PRIVATE KEY" not in text


@pytest.mark.parametrize("place", ["missing", "folder"])
def test_a_file_that_is_not_there_is_refused(place: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    key = PemFolder(tmp_path).write("key", KEY)
    with pytest.raises(FileError, match=r"^chain: "):
        ServerTls(NamedFile("chain", str(tmp_path / place)), key)


@pytest.mark.parametrize("text", [KEY + CHAIN, b"Bag Attributes\n" + KEY], ids=["with its chain", "with a heading"])
def test_a_key_may_stand_among_other_things(text: bytes, tmp_path: Path) -> None:
    opened(tmp_path, text, CHAIN).check()


@pytest.mark.parametrize(
    ("life", "left", "words"),
    [
        (dt.timedelta(days=90), dt.timedelta(days=8), []),
        (dt.timedelta(days=90), dt.timedelta(days=6), ["expires"]),
        (dt.timedelta(hours=10), dt.timedelta(hours=2), []),
        (dt.timedelta(hours=10), dt.timedelta(minutes=50), ["expires"]),
        (dt.timedelta(hours=10), -dt.timedelta(seconds=1), ["expired"]),
    ],
    ids=str,
)
def test_a_certificate_is_logged_once_before_it_expires(
    life: dt.timedelta, left: dt.timedelta, words: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    issued = AUTHORITY.issue_cert("cart.example", not_before=NOW, not_after=NOW + life, key_type=trustme.KeyType.ECDSA)
    tls = opened(
        tmp_path, issued.private_key_pem.bytes(), issued.cert_chain_pems[0].bytes(), now=lambda: NOW + life - left
    )
    tls.check()
    tls.check()
    said = [record.getMessage() for record in caplog.records if "chain: " in record.getMessage()]
    assert [line.split()[-3] for line in said] == words


def test_the_metric_has_the_first_certificate_of_a_file_to_expire(tmp_path: Path) -> None:
    end = NOW.replace(microsecond=0) + dt.timedelta(minutes=30)
    first = AUTHORITY.issue_cert("cart.example", not_after=end, key_type=trustme.KeyType.ECDSA)
    opened(tmp_path, KEY, CHAIN + first.cert_chain_pems[0].bytes()).check()
    assert value_of(CERTIFICATE_EXPIRY.labels("chain")) == end.timestamp()
