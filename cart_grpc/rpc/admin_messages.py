"""Reservations, statistics and erasures as messages of `cartgrpc.v1`, for operators."""

from cartgrpc.v1 import cart_admin_service_pb2 as pb
from cartgrpc.v1 import cart_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from cart_grpc.admin import ReconcilerStatus
from cart_grpc.carts.progress import progress, progress_of
from cart_grpc.commands.direct import MAX_SET_ASIDE_REASON
from cart_grpc.protocol.reservation import Disposition
from cart_grpc.reservation_api.wire import clean_text
from cart_grpc.store.read.erasures import Erasure
from cart_grpc.store.read.operator_reads import PauseSnapshot, ReservationSnapshot, Stats, UnreadableReservation

Record = pb.ReservationRecord


def reservation_message(seen: ReservationSnapshot | UnreadableReservation) -> pb.ReservationRecord:
    """Return a reservation with everything that the database has about it, or why it cannot be read."""
    if isinstance(seen, UnreadableReservation):
        return _unreadable(seen.reservation_id, seen.error)
    try:
        return _readable(seen)
    except (TypeError, ValueError) as error:
        # A value that was written by hand does not fit into the field.
        return _unreadable(seen.reservation.reservation_id, str(error))


def _unreadable(reservation_id: str, error: str) -> pb.ReservationRecord:
    why = clean_text(f"the row cannot be read: {error}")
    return pb.ReservationRecord(
        name=f"reservations/{reservation_id}", state=Record.STATE_SET_ASIDE, set_aside_reason=why[:MAX_SET_ASIDE_REASON]
    )


def _readable(seen: ReservationSnapshot) -> pb.ReservationRecord:
    row = seen.reservation
    leased = row.lease_expire_time is not None and row.lease_expire_time > seen.now
    return pb.ReservationRecord(
        name=row.name,
        item=row.cart.item_name(row.item_id),
        sku=row.sku,
        quantity=row.quantity,
        disposition=Record.Disposition.ValueType(row.disposition),
        state=Record.State.ValueType(seen.state),
        observed_state=Record.ObservedState.ValueType(row.state),
        shown_state=_shown(seen),
        revision=row.revision,
        observed_revision=row.observed_revision,
        granted_quantity=row.granted_quantity,
        expire_time=_time(row.expire_time),
        reason=row.seal_reason or row.reason,
        attempt_count=row.attempt_count,
        next_attempt_time=None if leased else _time(row.due_time),
        lease_expire_time=_time(row.lease_expire_time),
        last_error=row.last_error,
        create_time=_time(row.create_time),
        finish_time=_time(row.finish_time),
        set_aside_reason=row.set_aside_reason,
        checkout=row.cart.checkout(row.checkout_id).name if row.checkout_id else "",
    )


def _shown(seen: ReservationSnapshot) -> cart_pb2.Reservation.State.ValueType:
    """Return the state that a caller sees in the item; a removed item shows only in its cart's `reconciling`."""
    if seen.line:
        return cart_pb2.Reservation.State.ValueType(progress(seen.line, seen.now).state)
    row = seen.reservation
    if row.disposition is Disposition.COMMIT:
        # The item is in the checkout, and has the quantity that is being sold.
        return cart_pb2.Reservation.State.ValueType(progress_of(row, row.quantity, seen.now).state)
    if row.releasing or row.superseded_by:
        return cart_pb2.Reservation.STATE_RELEASING
    return cart_pb2.Reservation.STATE_UNSPECIFIED


def stats_message(stats: Stats, reconciler: ReconcilerStatus | None) -> pb.GetReservationStatsResponse:
    """Return the backlog, and the state of this process's calls to the Reservation API."""
    backlog = [
        pb.GetReservationStatsResponse.Backlog(
            state=Record.State.ValueType(one.state),
            disposition=Record.Disposition.ValueType(one.disposition),
            count=one.count,
            oldest_create_time=_time(one.oldest_create_time),
        )
        for one in stats.backlog
    ]
    return pb.GetReservationStatsResponse(
        backlog=backlog,
        due_count=stats.due_count,
        oldest_due_time=_time(stats.oldest_due_time),
        pause=pause_message(stats.pause),
        reconciler=_reconciler(reconciler, stats.now) if reconciler else None,
    )


def _reconciler(status: ReconcilerStatus, now: int) -> pb.GetReservationStatsResponse.Reconciler:
    open_us = status.find_breaker_open_us()
    return pb.GetReservationStatsResponse.Reconciler(
        in_flight_count=status.in_flight,
        breaker_open=open_us is not None,
        breaker_open_time=None if open_us is None else _time(now - open_us),
    )


def pause_message(pause: PauseSnapshot | None) -> pb.Pause | None:
    """Return the pause, or None if the reconcilers are not paused."""
    return pb.Pause(reason=pause.reason, create_time=_time(pause.create_time)) if pause else None


def erasure_message(seen: Erasure) -> pb.EraseUserResponse:
    """Return the progress of the erasure of a user."""
    return pb.EraseUserResponse(
        done=seen.begin_time is None,
        blocking_checkouts=[checkout.name for checkout in seen.blocking],
        cart_count=seen.cart_count,
        unreleased_count=seen.unreleased_count,
        create_time=_time(seen.begin_time),
    )


def _time(microseconds: int | None) -> Timestamp | None:
    if microseconds is None:
        return None
    timestamp = Timestamp()
    timestamp.FromMicroseconds(microseconds)
    return timestamp
