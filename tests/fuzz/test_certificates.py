"""Certificates with drawn names, over TLS: only exactly the name of a service, of its kind, gives its scopes."""

import random
from collections.abc import AsyncIterator
from ipaddress import ip_address
from typing import Final

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from cart_grpc.authentication.caller import CARTS_ACT_AS, CARTS_READ
from tests.rpc.protected import JOBS, READER, SERVICES, WEB, Shop, open_shop
from tests.rpc.right import right

CERTIFICATES: Final = 30
KNOWN: Final = (WEB, READER, JOBS)
KINDS: Final = (x509.UniformResourceIdentifier, x509.DNSName, x509.RFC822Name)


@pytest.fixture(scope="module")
async def shop(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Shop]:
    async with open_shop(tmp_path_factory.mktemp("shop")) as opened:
        yield opened


def draw_name(rng: random.Random) -> x509.GeneralName:
    """A name of a service as any kind of name, or one that is nearly its name."""
    name = rng.choice(KNOWN)
    near = (
        f"{name}\0", f"{name}\0.evil.example", f"\0{name}", f"{name}.", f" {name}", f"{name}\n", name.upper(),
        name[:-1], f"{name}/", f"*{name[name.index('.') :]}", f"{name},{READER}", f"URI:{READER}", f"{name}{'x' * 500}",
        "", "\0",
    )  # fmt: skip
    text = name if rng.randrange(2) else rng.choice(near)
    match rng.randrange(8):
        case 0:
            return x509.DirectoryName(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        case 1:
            # An OtherName with the name as UTF8String.
            return x509.OtherName(NameOID.COMMON_NAME, b"\x0c" + bytes([len(name)]) + name.encode())
        case 2:
            return x509.IPAddress(ip_address("127.0.0.1"))
        case 3:
            return rng.choice(KINDS)(name)
    return (x509.UniformResourceIdentifier if "://" in name else x509.DNSName)(text)


def scopes_of(names: list[x509.GeneralName]) -> set[str]:
    """The scopes of the services with exactly these names."""
    uris = [name.value for name in names if isinstance(name, x509.UniformResourceIdentifier)]
    dns_names = [name.value for name in names if isinstance(name, x509.DNSName)]
    own = [name for name in SERVICES if name in (uris if "://" in name else dns_names)]
    return {scope for name in own for scope in SERVICES[name]}


@pytest.mark.parametrize("seed", range(CERTIFICATES))
async def test_only_the_exact_name_of_a_service_gives_its_scopes(shop: Shop, seed: int) -> None:
    rng = random.Random(seed)
    names = [draw_name(rng) for _ in range(rng.choice((1, 1, 2, 5)))]
    service = await shop.shows(*names, common_name=READER)
    refusal = await service.refuse("GetCart", right("GetCart", "users/nobody"))
    allowed = {CARTS_READ, CARTS_ACT_AS} <= scopes_of(names)
    assert refusal.info.reason == ("CART_NOT_FOUND" if allowed else "PERMISSION_DENIED"), names


@pytest.mark.parametrize("kind", [x509.UniformResourceIdentifier, x509.DNSName])
async def test_a_name_does_not_end_at_a_zero_byte(shop: Shop, kind: type[x509.GeneralName]) -> None:
    """gRPC for Python shows such a name only up to that byte."""
    known = READER if kind is x509.UniformResourceIdentifier else JOBS
    for name in (f"{known}\0.evil.example", f"{known}\0"):
        service = await shop.shows(kind(name))  # type: ignore[call-arg]
        refusal = await service.refuse("DeleteCart", right("DeleteCart", "users/nobody"))
        assert dict(refusal.info.metadata) == {"scope": "carts.write"}


def test_the_certificates_are_of_both_sorts() -> None:
    names = [draw_name(random.Random(seed)) for seed in range(CERTIFICATES)]
    assert 5 < sum(bool(scopes_of([name])) for name in names) < CERTIFICATES - 5
