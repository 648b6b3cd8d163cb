"""The client: its connections, its carts, and the calls that are not about one cart."""

from collections.abc import AsyncGenerator, Callable, Mapping
from types import TracebackType
from typing import Self

import grpc
from cartgrpc.v1 import cart_pb2
from cartgrpc.v1 import cart_service_pb2 as pb

from cart_grpc.client import async_io as io
from cart_grpc.client._async.calls import Calls
from cart_grpc.client._async.cart import AsyncCart
from cart_grpc.client._async.connection import Connection
from cart_grpc.client.arguments import cart_key, cart_key_of, check_address, check_timeout, user_name
from cart_grpc.names import CartKey


class CartClient:
    """A client of CartService at `address`, HOST:PORT. It connects at the first call; close it at the end.

    Each call may take `timeout` seconds plus its `wait`, with all its attempts. The client calls `token` for each
    attempt and sends its result as `authorization: Bearer`. It sends the pairs that `metadata` returns, such as
    `traceparent`, with each attempt, too; their names are in lower case. With `credentials`, the connections use TLS.

    One connection carries 100 calls at a time, and another one 50 watches. For more, use several clients.

    Raises ValueError for a wrong address or timeout.
    """

    def __init__(
        self,
        address: str,
        *,
        timeout: float = 10.0,
        token: io.Token | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        metadata: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self._timeout = check_timeout(timeout)
        self._connection = Connection(check_address(address), credentials, token, metadata)
        # Of their own: watches must not take the places of calls.
        self._watches = Connection(address, credentials, token, metadata)
        self._calls = Calls(self._connection, timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections. Calls and watches that still run raise CartError with the reason CLIENT_CLOSED."""
        await self._connection.close()
        await self._watches.close()

    def cart(self, user: str, cart: str = "default") -> AsyncCart:
        """Return a user's cart, by the ids of both. Makes no call. Raises ValueError if one is no valid id."""
        return self._cart(cart_key(user, cart))

    def cart_by_name(self, name: str) -> AsyncCart:
        """Return the cart with the name `users/{user}/carts/{cart}`. Makes no call. Raises ValueError."""
        return self._cart(cart_key_of(name))

    async def list_carts(
        self,
        user: str,
        *,
        filter: str = "",  # noqa: A002 - the name of the field
        order_by: str = "",
    ) -> AsyncGenerator[cart_pb2.Cart, None]:
        """Yield the user's carts without their items, page by page. Raises CartError, ValueError."""
        request = pb.ListCartsRequest(parent=user_name(user), filter=filter, order_by=order_by)
        while True:
            page = await self._calls.read(self._calls.stub.ListCarts, request)
            for cart in page.carts:
                yield cart
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def get_checkout(self, name: str) -> cart_pb2.Checkout:
        """Return the checkout `users/{user}/checkouts/{checkout}` with its items. Raises CartError."""
        return (await self._calls.read(self._calls.stub.GetCheckout, pb.GetCheckoutRequest(name=name))).checkout

    async def complete_checkout(
        self, name: str, order_reference: str, *, wait: float = 0.0, etag: str = "", request_id: str = ""
    ) -> cart_pb2.Checkout:
        """Sell the items of the checkout: call it when the customer has paid. Return the checkout. Raises CartError.

        It is safe to repeat with the same order_reference. `wait` waits until the checkout is COMPLETED or FAILED.
        """
        request = pb.CompleteCheckoutRequest(name=name, order_reference=order_reference)
        method = self._calls.stub.CompleteCheckout
        return (await self._calls.change(method, request, wait=wait, etag=etag, request_id=request_id)).checkout

    async def cancel_checkout(
        self, name: str, *, wait: float = 0.0, etag: str = "", request_id: str = ""
    ) -> cart_pb2.Checkout:
        """End a checkout that is OPEN or FAILED. Return the checkout. Raises CartError."""
        request = pb.CancelCheckoutRequest(name=name)
        method = self._calls.stub.CancelCheckout
        return (await self._calls.change(method, request, wait=wait, etag=etag, request_id=request_id)).checkout

    async def list_checkouts(
        self,
        user: str,
        *,
        filter: str = "",  # noqa: A002 - the name of the field
    ) -> AsyncGenerator[cart_pb2.Checkout, None]:
        """Yield the user's checkouts without their items, newest first, page by page. Raises CartError, ValueError."""
        request = pb.ListCheckoutsRequest(parent=user_name(user), filter=filter)
        while True:
            page = await self._calls.read(self._calls.stub.ListCheckouts, request)
            for checkout in page.checkouts:
                yield checkout
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def _cart(self, key: CartKey) -> AsyncCart:
        return AsyncCart(key, self._calls, self._watches, self._timeout)
