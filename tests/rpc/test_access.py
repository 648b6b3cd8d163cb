"""The identity of a caller: a token or a certificate proves it, over TLS, and nothing else does."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from ipaddress import ip_address
from typing import Any

import grpc
import pytest
from cartgrpc.v1 import cart_service_pb2
from cryptography import x509
from grpc_health.v1 import health_pb2

from cart_grpc.authentication.caller import CARTS_ACT_AS, CARTS_READ, CARTS_WRITE
from cart_grpc.authentication.key_set import KeySet
from cart_grpc.authentication.key_sources import UrlSource
from cart_grpc.authentication.refusals import Fault, PermissionDenied, TokenExpired, TokenInvalid, TokenMissing
from cart_grpc.authentication.tokens import Tokens
from cart_grpc.carts.refusals import CallRefused
from cart_grpc.logs import output
from cart_grpc.rpc import status
from cart_grpc.rpc.access import AccessByToken
from cart_grpc.rpc.methods import CART_SERVICE, Method
from tests.attacks.wire import END_HEADERS, END_STREAM, HEADERS, call_of, frame, wired
from tests.authentication.issuer import AUDIENCE, ISSUER, make_token
from tests.authentication.key_server import KeyServer
from tests.deadlines import growing
from tests.rpc.protected import JOBS, LONER, OPERATOR, READER, WEB, Identity, Shop, open_shop, secured
from tests.rpc.refusal import to_refusal
from tests.rpc.right import ask, path_of, right
from tests.rpc.serving import pipeline_of, serving, started
from tests.rpc.test_streams import Stream
from tests.tls import SECRET
from tests.waiting import until

GET = right("GetCart")


@pytest.fixture(scope="module")
async def shop(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Shop]:
    """A shop in which alice and bob have a cart each."""
    async with open_shop(tmp_path_factory.mktemp("access")) as shop:
        for user in ("alice", "bob"):
            await (await shop.user(user)).call("AddItem", right("AddItem", f"users/{user}"))
        yield shop


async def may_read(identity: Identity, user: str = "alice") -> bool:
    """Whether a caller may list the carts of a user."""
    try:
        await identity.call("ListCarts", ask("ListCarts", parent=f"users/{user}"))
    except grpc.aio.AioRpcError as error:
        assert to_refusal(error).info.reason == "PERMISSION_DENIED"  # noqa: PT017 - or the call succeeds
        return False
    return True


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "Bearer  "])
async def test_a_token_gives_access_to_the_carts_of_its_user_only(shop: Shop, scheme: str) -> None:
    alice = await shop.sends(("authorization", f"{scheme} {make_token('alice')}"))
    assert (await alice.call("GetCart", GET)).cart.name == GET.name
    assert [await may_read(alice, user) for user in ("alice", "bob")] == [True, False]


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        (("authorization", ""),),
        (("authorization", "Bearer"),),
        (("authorization", "Bearer "),),
        (("authorization", "Basic YWxpY2U6"),),
        (("authorization", "BearerBearer x"),),
    ],
    ids=str,
)
async def test_a_call_without_a_bearer_token_is_refused(shop: Shop, metadata: tuple[tuple[str, str], ...]) -> None:
    refusal = await (await shop.sends(*metadata)).refuse("GetCart", GET)
    assert (refusal.code, refusal.info.reason) == ("UNAUTHENTICATED", "TOKEN_MISSING")


async def test_a_token_without_the_scheme_is_no_token(shop: Shop) -> None:
    refusal = await (await shop.sends(("authorization", make_token("alice")))).refuse("GetCart", GET)
    assert refusal.info.reason == "TOKEN_MISSING"


@pytest.mark.parametrize("second", ["alice", "bob"])
async def test_two_tokens_are_refused_even_if_both_are_valid(shop: Shop, second: str) -> None:
    tokens = [("authorization", f"Bearer {make_token(user)}") for user in ("alice", second)]
    refusal = await (await shop.sends(*tokens)).refuse("GetCart", GET)
    assert (refusal.code, refusal.info.reason) == ("UNAUTHENTICATED", "TOKEN_INVALID")
    assert dict(refusal.info.metadata) == {"fault": "SEVERAL"}


@pytest.mark.parametrize("token", ["x", "x.y.z", "a b", "Bearer x.y.z"])
async def test_a_value_that_is_no_token_is_refused(shop: Shop, token: str) -> None:
    refusal = await (await shop.sends(("authorization", f"Bearer {token}"))).refuse("GetCart", GET)
    assert (refusal.code, refusal.info.reason) == ("UNAUTHENTICATED", "TOKEN_INVALID")


async def test_metadata_that_is_not_text_identifies_nobody_and_is_not_logged(
    shop: Shop, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("grpc._cython.cygrpc"), "filters", [])
    output.start("INFO")
    value = f"Bearer {SECRET}".encode() + b"\xff"
    headers = call_of(path_of("GetCart")) + b"\0\x0dauthorization" + bytes((len(value),)) + value
    reached: list[Any] = []

    async def servicer(request: Any, _context: Any) -> None:
        reached.append(request)

    access = AccessByToken(shop.tokens)
    async with serving(servicer, access=access) as server, wired(f"127.0.0.1:{server.port}") as wire:
        await wire.send([frame(HEADERS, END_HEADERS | END_STREAM, 1, headers)])
        await until(lambda: 1 in wire.ended_streams)
    assert reached == []
    assert SECRET not in caplog.text


# As proxies write them. Everybody who reaches the port can write them, too.
FORWARDED = (
    ("x-forwarded-user", "alice"),
    ("x-forwarded-email", "alice"),
    ("x-forwarded-access-token", "TOKEN"),
    ("x-forwarded-authorization", "Bearer TOKEN"),
    ("x-forwarded-client-cert", f"By={WEB};Hash=00;URI={WEB}"),
    ("x-forwarded-for", "127.0.0.1"),
    ("x-goog-authenticated-user-id", "alice"),
    ("x-amzn-oidc-identity", "alice"),
    ("x-auth-request-user", "alice"),
    ("x-jwt-payload", "TOKEN"),
    ("proxy-authorization", "Bearer TOKEN"),
    ("cookie", "authorization=Bearer TOKEN"),
    ("x-user-id", "alice"),
)


async def test_other_metadata_identifies_nobody(shop: Shop) -> None:
    forwarded = [(name, value.replace("TOKEN", make_token("alice"))) for name, value in FORWARDED]
    refusal = await (await shop.sends(*forwarded)).refuse("GetCart", GET)
    assert refusal.info.reason == "TOKEN_MISSING"
    bob = await shop.sends(("authorization", f"Bearer {make_token('bob')}"), *forwarded)
    assert [await may_read(bob, user) for user in ("alice", "bob")] == [False, True]
    loner = await shop.service(LONER, metadata=forwarded)
    assert not await may_read(loner)


async def test_a_token_identifies_nobody_on_a_port_for_certificates(shop: Shop) -> None:
    token = (("authorization", f"Bearer {make_token('alice')}"),)
    assert not await may_read(await shop.service("stranger.example", metadata=token))


async def test_a_caller_without_an_identity_is_refused_before_its_request_arrives(shop: Shop) -> None:
    for identity, reason in (
        (await shop.sends(), "TOKEN_MISSING"),
        (await shop.sends(("authorization", "Bearer x.y.z")), "TOKEN_INVALID"),
    ):
        silent: Any = identity.channel.stream_unary(path_of("GetCart"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await silent(timeout=10, metadata=identity.metadata)
        assert to_refusal(caught.value).info.reason == reason


async def test_health_needs_no_identity(shop: Shop) -> None:
    for identity in (await shop.sends(), await shop.service("stranger.example")):
        check: Any = identity.channel.unary_unary("/grpc.health.v1.Health/Check")
        await check(health_pb2.HealthCheckRequest().SerializeToString(), timeout=10)


async def test_a_call_that_waits_for_the_issuers_keys_ends_at_its_time_out(shop: Shop) -> None:
    async with KeyServer().running() as issuer:
        issuer.hold()
        async with KeySet(UrlSource(issuer.url, issuer.trust), {"ES256"}) as keys:
            access = AccessByToken(Tokens(keys, issuer=ISSUER, audience=AUDIENCE, leeway=0.0))
            async with secured(shop.authority, shop.add_carts, access, timeout=0.2) as port:
                credentials = shop.authority.channel()
                async with grpc.aio.secure_channel(f"localhost:{port}", credentials) as channel:
                    alice = Identity(channel, (("authorization", f"Bearer {make_token('alice')}"),))
                    refusal = await alice.refuse("GetCart", GET)
    assert (refusal.code, refusal.info.reason) == ("DEADLINE_EXCEEDED", "CALL_TIMEOUT")


NAMES: dict[str, tuple[list[x509.GeneralName], bool]] = {
    "the URI of a service": ([x509.UniformResourceIdentifier(READER)], True),
    "one of several URIs": (
        [x509.UniformResourceIdentifier("https://x.example"), x509.UniformResourceIdentifier(READER)],
        True,
    ),
    "a longer URI": ([x509.UniformResourceIdentifier(f"{READER}/x")], False),
    "a shorter URI": ([x509.UniformResourceIdentifier(READER[:-1])], False),
    "a URI in other letters": ([x509.UniformResourceIdentifier(READER.upper())], False),
    "a URI as a DNS name": ([x509.DNSName(READER)], False),
    "a URI as an e-mail address": ([x509.RFC822Name(READER)], False),
    "no name": ([], False),
}


@pytest.mark.parametrize("kind", NAMES)
async def test_a_service_is_known_by_the_exact_uri_in_its_certificate(shop: Shop, kind: str) -> None:
    names, known = NAMES[kind]
    assert await may_read(await shop.shows(*names, common_name=READER)) == known


DNS_NAMES: dict[str, tuple[list[x509.GeneralName], bool]] = {
    "the DNS name of a service": ([x509.DNSName(JOBS)], True),
    "a wildcard": ([x509.DNSName("*.shop.example")], False),
    "a DNS name as a URI": ([x509.UniformResourceIdentifier(JOBS)], False),
    "a DNS name in a URI": ([x509.UniformResourceIdentifier(f"https://{JOBS}")], False),
    "a DNS name as an e-mail address": ([x509.RFC822Name(f"root@{JOBS}")], False),
    "an IP address": ([x509.IPAddress(ip_address("127.0.0.1"))], False),
    "no name": ([], False),
}


@pytest.mark.parametrize("kind", DNS_NAMES)
async def test_a_service_is_known_by_the_exact_dns_name_in_its_certificate(shop: Shop, kind: str) -> None:
    names, known = DNS_NAMES[kind]
    service = await shop.shows(*names, common_name=JOBS)
    request = right("DeleteCart", "users/nobody")
    refusal = await service.refuse("DeleteCart", request)
    assert refusal.info.reason == ("CART_NOT_FOUND" if known else "PERMISSION_DENIED")


async def test_a_certificate_with_the_names_of_two_services_has_the_scopes_of_both(shop: Shop) -> None:
    both = await shop.service(LONER, READER)
    await both.call("AddItem", right("AddItem", "users/carol"))
    assert await may_read(both, "carol")
    for alone in (LONER, READER):
        refusal = await (await shop.service(alone)).refuse("AddItem", right("AddItem", "users/carol"))
        assert refusal.info.reason == "PERMISSION_DENIED"


async def test_the_identity_of_a_connection_is_its_own_on_every_call(shop: Shop) -> None:
    """Calls of several connections alternate: none gets the identity of another."""
    reader, loner, operator = [await shop.service(name) for name in (READER, LONER, OPERATOR)]
    bob, alice = await shop.user("bob"), await shop.user("alice")
    for _ in range(3):
        allowed = [may_read(identity) for identity in (reader, loner, operator, bob, alice)]
        assert await asyncio.gather(*allowed) == [True, False, False, False, True]


async def test_a_stream_of_requests_needs_an_identity_and_a_scope(shop: Shop) -> None:
    rows, servicer = (Method("Chat", streams=True, takes_stream=True),), Stream()
    decode = cart_service_pb2.GetCartRequest.FromString
    chat: Any = {"Chat": grpc.stream_stream_rpc_method_handler(servicer.chat, decode)}
    server, permissions = grpc.aio.server(), {CART_SERVICE: {"Chat": CARTS_WRITE}}
    pipeline = pipeline_of(server, rows, permissions=permissions, access=AccessByToken(shop.tokens))
    pipeline.add_registered_method_handlers(CART_SERVICE, chat)
    async with started(server) as (channel, _):
        expected = {
            "TOKEN_MISSING": await shop.sends(),
            "PERMISSION_DENIED": await shop.user(scope=CARTS_READ),
            "TOKEN_EXPIRED": await shop.user(exp=time.time() + 0.5),
        }
        for reason, identity in expected.items():
            method: Any = channel.stream_stream(f"/{CART_SERVICE}/Chat")
            call = method(timeout=20, metadata=identity.metadata)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
            assert to_refusal(caught.value).info.reason == reason
    assert servicer.requests == []


def test_a_refusal_is_encoded_as_itself_after_any_other() -> None:
    refusals: list[CallRefused] = [TokenMissing(), TokenExpired(), *map(TokenInvalid, Fault)]
    refusals += [PermissionDenied(scope, field) for scope in (CARTS_ACT_AS, CARTS_READ) for field in ("", "name")]
    for refusal in (*refusals, *refusals):
        assert status.encode(refusal) == status.to_rich(status.to_status(refusal))


async def test_a_stream_ends_when_the_token_expires_and_a_call_in_max_wait_finishes(shop: Shop) -> None:
    async def watch(watching: Any, expiry: float, seen: list[Any]) -> None:
        async for message in watching:
            assert message.cart.name == GET.name
            assert time.time() < expiry
            seen.append(message)

    lifetimes = growing(2)
    while True:
        lifetime = next(lifetimes)
        expiry = time.time() + lifetime
        mortal, immortal = await shop.user("alice", exp=expiry), await shop.user("alice")
        watching, other = mortal.begin("WatchCart", right("WatchCart")), immortal.begin("WatchCart", right("WatchCart"))
        waiting = right("AddItem")
        waiting.max_wait.seconds = int(lifetime) + 1
        added = asyncio.ensure_future(mortal.call("AddItem", waiting))
        seen: list[Any] = []
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await watch(watching, expiry, seen)
        refusal = to_refusal(caught.value)
        assert (refusal.code, refusal.info.reason) == ("UNAUTHENTICATED", "TOKEN_EXPIRED")
        if seen and not (added.done() and added.exception()):
            break
        # The token expired before the calls had begun.
        other.cancel()
        await asyncio.gather(added, return_exceptions=True)
    assert (await added).item.reservation.state
    assert time.time() > expiry
    assert not other.done()
    other.cancel()
