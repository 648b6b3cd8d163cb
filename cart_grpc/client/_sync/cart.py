# Made by `make sync-client` from the file of the same name in _async. Do not edit.
"""One cart, and the calls about it."""

from collections.abc import Generator, Iterable, Mapping
from datetime import timedelta

from cartgrpc.v1 import cart_pb2
from cartgrpc.v1 import cart_service_pb2 as pb

from cart_grpc.client._sync.calls import Calls
from cart_grpc.client._sync.connection import Connection
from cart_grpc.client._sync.watch import watch
from cart_grpc.client.arguments import UNSET, MaybeUnset, item_name, to_duration
from cart_grpc.names import CartKey, item_id_of


class SyncCart:
    """A cart's name, and the calls about it. It need not exist: adding to it creates it.

    Every call raises CartError if the server refuses it or does not answer in time, and ValueError or TypeError for
    arguments that no request can have. Every call that changes something takes:

    * `wait`, 0 to 60 seconds: how long to wait for the Reservation API. If the time runs out, the reply shows the
      current state, which is no error.
    * `etag`: the call raises Aborted unless the cart has this etag.
    * `request_id`: the same call with the same request_id has one effect and one reply. The client makes one for each
      call and keeps it for all attempts. Pass your own to repeat a call after an error, or in another process.
    """

    def __init__(self, key: CartKey, calls: Calls, watches: Connection, timeout: float) -> None:
        self._key = key
        self._calls = calls
        self._watches = watches
        self._timeout = timeout

    @property
    def name(self) -> str:
        """`users/{user}/carts/{cart}`."""
        return self._key.name

    def item_name(self, sku: str, options: Mapping[str, str] | None = None) -> str:
        """Return the name that the item with this sku and these options has in the cart. Makes no call."""
        return self._key.item_name(item_id_of(sku, options or {}))

    def get(self) -> cart_pb2.Cart:
        """Return the cart with its items."""
        return (self._calls.read(self._calls.stub.GetCart, pb.GetCartRequest(name=self.name))).cart

    def create(
        self,
        *,
        currency_code: str = "",
        labels: Mapping[str, str] | None = None,
        ttl: float | timedelta | None = None,
        etag: str = "",
        request_id: str = "",
    ) -> cart_pb2.Cart:
        """Create the cart. Needed only to set its labels, currency or ttl before the first item. Return the cart."""
        cart = cart_pb2.Cart(currency_code=currency_code, labels=labels)
        if ttl is not None:
            cart.ttl.CopyFrom(to_duration(ttl))
        request = pb.CreateCartRequest(parent=self._key.user.name, cart_id=self._key.cart_id, cart=cart)
        return (self._calls.change(self._calls.stub.CreateCart, request, etag=etag, request_id=request_id)).cart

    def update(
        self,
        *,
        currency_code: str | MaybeUnset = UNSET,
        labels: Mapping[str, str] | MaybeUnset = UNSET,
        ttl: float | timedelta | MaybeUnset | None = UNSET,
        wait: float = 0.0,
        etag: str = "",
        request_id: str = "",
    ) -> cart_pb2.Cart:
        """Set the given fields. "" clears the currency, {} the labels; None sets the server's ttl. Return the cart."""
        request = pb.UpdateCartRequest(cart=cart_pb2.Cart(name=self.name))
        if currency_code is not UNSET:
            request.cart.currency_code = currency_code
            request.update_mask.paths.append("currency_code")
        if labels is not UNSET:
            request.cart.labels.update(labels)
            request.update_mask.paths.append("labels")
        if ttl is not UNSET:
            request.update_mask.paths.append("ttl")
            if ttl is not None:
                request.cart.ttl.CopyFrom(to_duration(ttl))
        if not request.update_mask.paths:
            raise ValueError("update needs a currency_code, labels or a ttl to set")
        method = self._calls.stub.UpdateCart
        return (self._calls.change(method, request, wait=wait, etag=etag, request_id=request_id)).cart

    def add(  # noqa: PLR0913 - the fields of an item, and of every mutation
        self,
        sku: str,
        quantity: int = 1,
        *,
        options: Mapping[str, str] | None = None,
        unit_price: cart_pb2.Money | None = None,
        labels: Mapping[str, str] | None = None,
        wait: float = 0.0,
        etag: str = "",
        request_id: str = "",
    ) -> pb.AddItemResponse:
        """Add to the item with this sku and these options, or create it."""
        item = cart_pb2.Item(sku=sku, quantity=quantity, options=options, unit_price=unit_price, labels=labels)
        request = pb.AddItemRequest(parent=self.name, item=item)
        method = self._calls.stub.AddItem
        return self._calls.change(method, request, wait=wait, etag=etag, request_id=request_id)

    def add_all(
        self, items: Iterable[cart_pb2.Item], *, wait: float = 0.0, etag: str = "", request_id: str = ""
    ) -> pb.BatchAddItemsResponse:
        """Add all items or, if the server refuses one of them, none."""
        entries = [pb.AddItemRequest(item=item) for item in items]
        request = pb.BatchAddItemsRequest(parent=self.name, requests=entries)
        method = self._calls.stub.BatchAddItems
        return self._calls.change(method, request, wait=wait, etag=etag, request_id=request_id)

    def set(
        self,
        item: str | cart_pb2.Item,
        *,
        quantity: int | MaybeUnset = UNSET,
        unit_price: cart_pb2.Money | MaybeUnset | None = UNSET,
        labels: Mapping[str, str] | MaybeUnset = UNSET,
        wait: float = 0.0,
        etag: str = "",
        request_id: str = "",
    ) -> pb.UpdateItemResponse:
        """Set the given fields of an item: an Item, its name or its id. None clears the price, {} the labels."""
        request = pb.UpdateItemRequest(item=cart_pb2.Item(name=item_name(self._key, item)))
        if quantity is not UNSET:
            request.item.quantity = quantity
            request.update_mask.paths.append("quantity")
        if unit_price is not UNSET:
            request.update_mask.paths.append("unit_price")
            if unit_price is not None:
                request.item.unit_price.CopyFrom(unit_price)
        if labels is not UNSET:
            request.item.labels.update(labels)
            request.update_mask.paths.append("labels")
        if not request.update_mask.paths:
            raise ValueError("set needs a quantity, a unit_price or labels to set")
        method = self._calls.stub.UpdateItem
        return self._calls.change(method, request, wait=wait, etag=etag, request_id=request_id)

    def replace(
        self, items: Iterable[cart_pb2.Item], *, wait: float = 0.0, etag: str = "", request_id: str = ""
    ) -> pb.ReplaceItemsResponse:
        """Make the cart contain exactly these items. Items that stay keep their reservations."""
        request = pb.ReplaceItemsRequest(name=self.name, items=list(items))
        method = self._calls.stub.ReplaceItems
        return self._calls.change(method, request, wait=wait, etag=etag, request_id=request_id)

    def remove(
        self, item: str | cart_pb2.Item, *, wait: float = 0.0, etag: str = "", request_id: str = ""
    ) -> pb.RemoveItemResponse:
        """Remove an item: an Item, its name or its id."""
        request = pb.RemoveItemRequest(name=item_name(self._key, item))
        method = self._calls.stub.RemoveItem
        return self._calls.change(method, request, wait=wait, etag=etag, request_id=request_id)

    def clear(self, *, wait: float = 0.0, etag: str = "", request_id: str = "") -> pb.ClearCartResponse:
        """Remove all items."""
        request = pb.ClearCartRequest(name=self.name)
        method = self._calls.stub.ClearCart
        return self._calls.change(method, request, wait=wait, etag=etag, request_id=request_id)

    def delete(self, *, wait: float = 0.0, etag: str = "", request_id: str = "") -> pb.DeleteCartResponse:
        """End the cart and remove all items."""
        request = pb.DeleteCartRequest(name=self.name)
        method = self._calls.stub.DeleteCart
        return self._calls.change(method, request, wait=wait, etag=etag, request_id=request_id)

    def retry(
        self, item: str | cart_pb2.Item, *, wait: float = 0.0, etag: str = "", request_id: str = ""
    ) -> pb.RetryReservationResponse:
        """Reserve an item again if its reservation is REJECTED or EXPIRED: an Item, its name or its id."""
        request = pb.RetryReservationRequest(name=item_name(self._key, item))
        method = self._calls.stub.RetryReservation
        return self._calls.change(method, request, wait=wait, etag=etag, request_id=request_id)

    def merge(self, source: str, *, wait: float = 0.0, etag: str = "", request_id: str = "") -> pb.MergeCartsResponse:
        """Move the items of the cart with the name `source`, such as a guest's, into this one. It ends as MERGED."""
        request = pb.MergeCartsRequest(name=self.name, source=source)
        method = self._calls.stub.MergeCarts
        return self._calls.change(method, request, wait=wait, etag=etag, request_id=request_id)

    def begin_checkout(
        self,
        *,
        window: float | timedelta | None = None,
        expected_subtotal: cart_pb2.Money | None = None,
        wait: float = 0.0,
        etag: str = "",
        request_id: str = "",
    ) -> cart_pb2.Checkout:
        """Freeze the cart for `window`, by default 15 minutes, so that it can be paid for. Return the checkout.

        Raises FailedPrecondition, for example NOT_RESERVED with a violation for each item that is not reserved.
        """
        request = pb.BeginCheckoutRequest(name=self.name, expected_subtotal=expected_subtotal)
        if window is not None:
            request.window.CopyFrom(to_duration(window))
        method = self._calls.stub.BeginCheckout
        return (self._calls.change(method, request, wait=wait, etag=etag, request_id=request_id)).checkout

    def watch(self) -> Generator[cart_pb2.Cart, None]:
        """Return an iterator over the states of the cart: the current one, then each newer one. States may be skipped.

        It ends when the cart has ended. When the connection or the server fails, it connects again and goes on. Raises
        NotFound if there is no such cart, and CartError if there is no first state within the client's time-out.
        To end its call at once, close the iterator or the client.
        """
        return watch(self._watches, self.name, self._timeout)
