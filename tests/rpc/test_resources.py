"""A user reaches nothing of another user, and learns nothing about it, whatever a request contains."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from cartgrpc.v1 import cart_service_pb2

from cart_grpc.authentication.caller import CARTS_ACT_AS, CARTS_READ, CARTS_WRITE
from cart_grpc.authentication.services import Services
from cart_grpc.names import cart_key, user_key
from cart_grpc.rpc.access import AccessByCertificate, AccessByToken
from tests.rpc.protected import LONER, SERVICES, WEB, Identity, Shop, lacking_scope, open_shop
from tests.rpc.refusal import to_refusal
from tests.rpc.right import RIGHT, SKU, ask, descriptor_of, right
from tests.rpc.serving import admitting, serving
from tests.rpc.test_permissions import ROWS, text_fields
from tests.store.checkouts import begin, hold_items, id_in

KEY_OF_BOB = cart_key(user_key("bob"), "default")
CARTS_OF_BOB = ("default", "frozen")
SECRET = "a-present-for-carol"
ONCE = "bobs-request"


@dataclass(frozen=True)
class Bob:
    """A user whom nobody but himself may reach: his cart with a request_id, and his frozen cart with its checkout."""

    shop: Shop
    texts: Sequence[str]
    checkout: str

    async def read(self) -> object:
        """Everything that others could change."""
        carts = [await self.shop.store.reads.find_cart(KEY_OF_BOB._replace(cart_id=name)) for name in CARTS_OF_BOB]
        assert all(carts)
        checkout = await self.shop.store.checkout_reads.find(KEY_OF_BOB.checkout(self.checkout.rpartition("/")[2]))
        return [(found.cart, found.lines) for found in carts if found], checkout.checkout if checkout else None


@pytest.fixture(scope="module")
async def opened(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Shop]:
    async with open_shop(tmp_path_factory.mktemp("permissions")) as shop:
        yield shop


@pytest.fixture(scope="module")
async def bob(opened: Shop) -> Bob:
    bob, checkouts = await opened.user("bob"), []
    for cart_id in ("frozen", "also-frozen"):
        frozen = KEY_OF_BOB._replace(cart_id=cart_id)
        await hold_items(opened.store, SKU, key=frozen)
        checkouts.append(frozen.checkout(id_in(await opened.store.mutate(begin(frozen)))).name)
    request = ask("AddItem", parent=KEY_OF_BOB.name, item={"sku": SKU, "labels": {"note": SECRET}}, request_id=ONCE)
    item = (await bob.call("AddItem", request)).item
    cart = (await bob.call("GetCart", right("GetCart", "users/bob"))).cart
    page = await bob.call("ListCarts", ask("ListCarts", parent="users/bob", page_size=1))
    texts = ("users/bob", cart.name, item.name, checkouts[0], cart.etag, cart.uid, ONCE, page.next_page_token)
    assert all(texts)
    return Bob(opened, texts, checkouts[0])


@pytest.fixture(scope="module")
async def shop(opened: Shop, bob: Bob) -> Shop:
    """A shop in which bob has carts and checkouts. Mallory and alice are others."""
    return opened


async def test_a_user_reaches_a_cart_of_its_own_and_learns_that_another_is_missing(shop: Shop) -> None:
    owner = await shop.user("owner")
    await owner.call("AddItem", right("AddItem", "users/owner"))
    assert (await owner.call("GetCart", right("GetCart", "users/owner"))).cart.item_count == 1
    refusal = await owner.refuse("GetCart", ask("GetCart", name="users/owner/carts/missing"))
    assert (refusal.code, refusal.info.reason) == ("NOT_FOUND", "CART_NOT_FOUND")


def of_bob(method: str, bob: Bob) -> Any:
    """A request for something of bob's that exists."""
    request = right(method, "users/bob")
    if request.DESCRIPTOR.name in ("CompleteCheckoutRequest", "CancelCheckoutRequest", "GetCheckoutRequest"):
        request.name = bob.checkout
    return request


@pytest.mark.parametrize("method", RIGHT)
async def test_the_refusal_is_the_same_byte_for_byte_whether_another_users_resource_exists(
    shop: Shop, bob: Bob, method: str
) -> None:
    mallory, before = await shop.user("mallory"), await bob.read()
    errors = [await mallory.fail(method, request) for request in (of_bob(method, bob), right(method, "users/nobody"))]
    first, second = [(error.code(), error.details(), error.trailing_metadata()) for error in errors]
    assert first == second
    refusal = to_refusal(errors[0])
    assert (refusal.code, refusal.info.reason) == ("PERMISSION_DENIED", "PERMISSION_DENIED")
    assert dict(refusal.info.metadata) == {"scope": CARTS_ACT_AS, "field": ROWS[method].resources[0]}
    assert await bob.read() == before


async def test_a_merge_needs_permission_for_both_carts(shop: Shop, bob: Bob) -> None:
    mallory, before = await shop.user("mallory"), await bob.read()
    mine, his = "users/mallory/carts/default", KEY_OF_BOB.name
    for name, source, field in ((mine, his, "source"), (his, mine, "name"), (mine, "users/nobody/carts/a", "source")):
        refusal = await mallory.refuse("MergeCarts", ask("MergeCarts", name=name, source=source))
        assert dict(refusal.info.metadata) == {"scope": CARTS_ACT_AS, "field": field}
    assert await bob.read() == before


async def test_a_service_with_act_as_merges_the_cart_of_a_guest_into_the_cart_of_a_user(shop: Shop) -> None:
    for user in ("guest", "member"):
        await (await shop.user(user)).call("AddItem", right("AddItem", f"users/{user}"))
    request = ask("MergeCarts", name="users/member/carts/default", source="users/guest/carts/default")
    assert await lacking_scope(await shop.user("member"), "MergeCarts", request) == CARTS_ACT_AS
    merged = await (await shop.service(WEB)).call("MergeCarts", request)
    assert [item.quantity for item in merged.cart.items] == [4]
    gateway = await shop.user("gateway", scope=f"{CARTS_WRITE} {CARTS_ACT_AS}")
    assert await lacking_scope(gateway, "MergeCarts", request) == ""


# Not one of them is a name of a resource of alice's.
FOREIGN = (
    *("", "users", "users/", "users//", "/", "//", "alice", "-", "users/-", "users/*", "users/-/carts/default"),
    *("users/alicia/carts/default", "users/alice2/carts/default", "users/alic/carts/default", "users/Alice/carts/a"),
    *("Users/alice/carts/default", "/users/alice/carts/default", " users/alice/carts/default", "user/alice/carts/a"),
    *("users/alice \0/carts/default", "users/alice%2fcarts/a", "users/%61lice/carts/a", "users/\uff41lice/carts/a"),
    *("users/bob/../alice/carts/a", "carts/alice/default", "https://shop.example/users/alice", "users\\alice\\carts"),
)
# They begin as alice's names do, so they are invalid like any other invalid name.
INVALID = ("users/alice", "users/alice/", "users/alice/carts", "users/alice/carts/", "users/alice/../bob/carts/default")


@pytest.mark.parametrize("name", FOREIGN)
async def test_a_name_that_does_not_begin_with_the_callers_own_is_denied_valid_or_not(shop: Shop, name: str) -> None:
    alice, request = await shop.user("alice"), cart_service_pb2.GetCartRequest(name=name)
    assert (await alice.refuse("GetCart", request)).info.reason == "PERMISSION_DENIED"
    assert await lacking_scope(await shop.service(LONER), "GetCart", request) == CARTS_ACT_AS
    # A caller that may name everybody learns whether the name is valid.
    refusal = await (await shop.service(WEB)).refuse("GetCart", request)
    assert refusal.info.reason in ("INVALID_FIELD", "CART_NOT_FOUND")


@pytest.mark.parametrize("name", INVALID)
async def test_an_invalid_name_within_the_callers_own_is_invalid(shop: Shop, name: str) -> None:
    request = cart_service_pb2.GetCartRequest(name=name)
    assert (await (await shop.user("alice")).refuse("GetCart", request)).info.reason == "INVALID_FIELD"


async def test_a_call_that_is_denied_is_not_validated_and_reaches_no_servicer(shop: Shop) -> None:
    reached = []

    async def servicer(request: Any, _context: Any) -> Any:
        reached.append(request)

    metadata = (await shop.user("alice")).metadata
    async with serving(servicer, access=AccessByToken(shop.tokens), admission=admitting()) as server:
        alice = Identity(server.channel, metadata)
        request = ask("AddItem", parent="users/bob/carts/default", item={"quantity": -1}, request_id="-", etag="x")
        assert (await alice.refuse("AddItem", request)).info.reason == "PERMISSION_DENIED"
        assert (await alice.refuse("GetCart", right("GetCart", "users/bob"))).info.reason == "PERMISSION_DENIED"
    assert reached == []


async def test_a_port_without_tls_gives_no_service_a_scope() -> None:
    async def servicer(_request: Any, _context: Any) -> Any:
        return cart_service_pb2.GetCartResponse()

    async with serving(servicer, access=AccessByCertificate(Services(SERVICES))) as server:
        assert await lacking_scope(Identity(server.channel), "GetCart", right("GetCart")) == CARTS_READ


def put(message: Any, path: str, value: str) -> bool:
    """Put a text into a field at any depth, in the first entry of a list. Return whether that is possible."""
    first, _, rest = path.partition(".")
    field = message.DESCRIPTOR.fields_by_name[first]
    if field.message_type and field.message_type.GetOptions().map_entry:
        return False
    if field.is_repeated and field.message_type and not getattr(message, first):
        getattr(message, first).add()
    if rest:
        inner = getattr(message, first)
        return put(inner[0] if field.is_repeated else inner, rest, value)
    if field.is_repeated:
        getattr(message, first).append(value)
    else:
        setattr(message, first, value)
    return True


@pytest.mark.parametrize("method", RIGHT)
async def test_no_other_field_reaches_another_user(shop: Shop, bob: Bob, method: str) -> None:
    """With bob's names, etag, uid, request_id and page token in them, mallory gets and changes nothing of his."""
    mallory, before = await shop.user("mallory"), await bob.read()
    sent = 0
    for path in text_fields(descriptor_of(method).input_type):
        for text in bob.texts:
            request = right(method, "users/mallory")
            if path in ROWS[method].resources or not put(request, path, text):
                continue
            sent += 1
            try:
                answer = (await mallory.call(method, request)).SerializeToString()
            except grpc.aio.AioRpcError as error:
                answer = repr(error).encode()
            assert SECRET.encode() not in answer
    assert sent or method in ("GetCart", "WatchCart", "GetCheckout")
    assert await bob.read() == before


@pytest.mark.parametrize("method", ["ListCarts", "ListCheckouts"])
async def test_a_page_token_of_another_user_is_refused(shop: Shop, bob: Bob, method: str) -> None:
    service, mallory = await shop.service(WEB), await shop.user("mallory")
    token = (await service.call(method, ask(method, parent="users/bob", page_size=1))).next_page_token
    assert token
    refusal = await mallory.refuse(method, ask(method, parent="users/mallory", page_token=token))
    assert refusal.violations == {"page_token": "INVALID_PAGE_TOKEN"}
    assert await lacking_scope(mallory, method, ask(method, parent="users/bob", page_token=token)) == CARTS_ACT_AS
