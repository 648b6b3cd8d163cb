"""`cartgrpc.v1.CartAdminService`: decode, call, encode."""

from typing import Any

import grpc
from cartgrpc.v1 import cart_admin_service_pb2 as pb
from cartgrpc.v1 import cart_admin_service_pb2_grpc

from cart_grpc.admin import OperatorActions
from cart_grpc.rpc import admin_requests, checkout_requests, pages
from cart_grpc.rpc.admin_messages import erasure_message, pause_message, reservation_message, stats_message
from cart_grpc.rpc.checkout_messages import snapshot_message, summary_message
from cart_grpc.rpc.messages import cart_message
from cart_grpc.rpc.process_stats import process_stats_message

Context = grpc.aio.ServicerContext[Any, Any]


class CartAdminService(cart_admin_service_pb2_grpc.CartAdminServiceServicer):
    """Reservations, carts and users, for the operators of the service."""

    def __init__(self, operator: OperatorActions) -> None:
        self._operator = operator

    async def ListReservations(
        self, request: pb.ListReservationsRequest, context: Context
    ) -> pb.ListReservationsResponse:
        page = admin_requests.list_reservations(request)
        found = await self._operator.list(page)
        shown = pages.fitting([reservation_message(one) for one in found.reservations], page.size)
        after = found.next_after if len(shown) == len(found.reservations) else found.positions[len(shown) - 1]
        token = admin_requests.next_page_token(page, after) if after else ""
        return pb.ListReservationsResponse(reservations=shown, next_page_token=token)

    async def GetReservation(self, request: pb.GetReservationRequest, context: Context) -> pb.GetReservationResponse:
        seen = await self._operator.get(admin_requests.reservation_id(request))
        return pb.GetReservationResponse(reservation=reservation_message(seen))

    async def RetryReservation(
        self, request: pb.CartAdminServiceRetryReservationRequest, context: Context
    ) -> pb.CartAdminServiceRetryReservationResponse:
        seen = await self._operator.retry(admin_requests.reservation_id(request))
        return pb.CartAdminServiceRetryReservationResponse(reservation=reservation_message(seen))

    async def ReleaseReservation(
        self, request: pb.ReleaseReservationRequest, context: Context
    ) -> pb.ReleaseReservationResponse:
        reservation_id, reason = admin_requests.release(request)
        seen = await self._operator.release(reservation_id, reason, force=request.force)
        return pb.ReleaseReservationResponse(reservation=reservation_message(seen))

    async def GetReservationStats(
        self, request: pb.GetReservationStatsRequest, context: Context
    ) -> pb.GetReservationStatsResponse:
        return stats_message(await self._operator.get_stats(), self._operator.reconciler)

    async def GetProcessStats(self, request: pb.GetProcessStatsRequest, context: Context) -> pb.GetProcessStatsResponse:
        return process_stats_message(self._operator.reconciler)

    async def PauseReservations(
        self, request: pb.PauseReservationsRequest, context: Context
    ) -> pb.PauseReservationsResponse:
        pause = await self._operator.pause(admin_requests.pause(request))
        return pb.PauseReservationsResponse(pause=pause_message(pause))

    async def ResumeReservations(
        self, request: pb.ResumeReservationsRequest, context: Context
    ) -> pb.ResumeReservationsResponse:
        await self._operator.resume()
        return pb.ResumeReservationsResponse()

    async def ListCarts(
        self, request: pb.CartAdminServiceListCartsRequest, context: Context
    ) -> pb.CartAdminServiceListCartsResponse:
        search = admin_requests.list_carts(request)
        found = await self._operator.find_carts(search)
        carts = [cart_message(one.cart, (), one.now, reconciling=one.reconciling) for one in found.carts]
        shown = pages.fitting(carts, search.size)
        after = found.next_after if len(shown) == len(carts) else found.carts[len(shown) - 1].cart.key
        token = admin_requests.next_cart_token(search, after) if after else ""
        return pb.CartAdminServiceListCartsResponse(carts=shown, next_page_token=token)

    async def ListCheckouts(
        self, request: pb.CartAdminServiceListCheckoutsRequest, context: Context
    ) -> pb.CartAdminServiceListCheckoutsResponse:
        page = checkout_requests.list_checkouts_of_all(request)
        found = await self._operator.list_checkouts(page)
        shown = pages.fitting([summary_message(one) for one in found], page.size)
        response = pb.CartAdminServiceListCheckoutsResponse(checkouts=shown)
        if len(found) > len(shown):
            response.next_page_token = checkout_requests.next_page_token(page, found[len(shown) - 1].checkout)
        return response

    async def GetCheckout(
        self, request: pb.CartAdminServiceGetCheckoutRequest, context: Context
    ) -> pb.CartAdminServiceGetCheckoutResponse:
        seen = await self._operator.get_checkout(checkout_requests.get_checkout(request))
        return pb.CartAdminServiceGetCheckoutResponse(checkout=snapshot_message(seen))

    async def EndCheckout(self, request: pb.EndCheckoutRequest, context: Context) -> pb.EndCheckoutResponse:
        key, reason = checkout_requests.end_checkout(request)
        seen = await self._operator.end_checkout(key, reason, force=request.force)
        return pb.EndCheckoutResponse(checkout=snapshot_message(seen))

    async def EraseUser(self, request: pb.EraseUserRequest, context: Context) -> pb.EraseUserResponse:
        user = admin_requests.erase_user(request)
        return erasure_message(await self._operator.erase_user(user, progress_only=request.progress_only))
