"""The part of the settings that each room gets. Here their units become microseconds."""

from cart_grpc.background.config import ReconcilerConfig
from cart_grpc.background.sweeper import Retention
from cart_grpc.carts.calls import Limits
from cart_grpc.reservation_api.credentials import CredentialFiles
from cart_grpc.rpc.admission import Admission
from cart_grpc.rpc.endpoint import CallLog
from cart_grpc.settings import Settings, find_file, variable_of
from cart_grpc.tls.client import TlsFiles, check_pair
from cart_grpc.units import to_us


def admission(settings: Settings) -> Admission:
    """Return the callers' admission."""
    return Admission(
        max_calls=settings.max_calls,
        max_calls_per_service=settings.max_calls_per_service,
        max_calls_per_user=settings.max_calls_per_user,
        max_waiting=settings.max_waiting_calls,
        max_waiting_per_user=settings.max_waiting_calls_per_user,
    )


def call_log(settings: Settings) -> CallLog | None:
    """Return which calls get a line in the log, None if none does."""
    if settings.log_calls == "off":
        return None
    return CallLog(settings.slow_call, all_calls=settings.log_calls == "all")


def limits(settings: Settings) -> Limits:
    """Return the limits of carts."""
    return Limits(
        max_quantity_per_add=settings.max_quantity_per_add,
        max_quantity_per_item=settings.max_quantity_per_item,
        max_items_per_cart=settings.max_items_per_cart,
        max_cart_bytes=settings.max_cart_bytes,
        max_user_bytes=settings.max_user_bytes,
        max_carts_per_user=settings.max_carts_per_user,
        max_items_per_user=settings.max_items_per_user,
        max_units_per_user=settings.max_units_per_user,
        hold_ttl_us=to_us(settings.hold_ttl),
        cart_ttl_us=to_us(settings.cart_ttl),
    )


def reconciler_config(settings: Settings) -> ReconcilerConfig:
    """Return how the reconciler calls the Reservation API."""
    return ReconcilerConfig(
        call_timeout_us=to_us(settings.reservation_timeout),
        grace_us=to_us(settings.reservation_grace),
        max_in_flight=settings.reservation_max_in_flight,
        poll_interval_us=to_us(settings.reservation_poll_interval),
        lease_us=to_us(settings.reservation_lease),
        backoff_initial_us=to_us(settings.reservation_backoff_initial),
        backoff_max_us=to_us(settings.reservation_backoff_max),
        breaker_threshold=settings.reservation_breaker_threshold,
        probe_interval_us=to_us(settings.reservation_probe_interval),
    )


def reservation_files(settings: Settings) -> CredentialFiles:
    """Return the files for the Reservation API. Raises FileError if a certificate has no key, or a key none."""
    names = "reservation_cert_file", "reservation_key_file"
    certificate, key = (find_file(settings, name) for name in names)
    check_pair(certificate, key, (variable_of(names[0]), variable_of(names[1])))
    tls = TlsFiles(find_file(settings, "reservation_ca_file"), certificate, key)
    return CredentialFiles(tls, find_file(settings, "reservation_token_file"))


def retention(settings: Settings) -> Retention:
    """Return the times for which the sweeper keeps ended rows."""
    return Retention(
        replies_us=to_us(settings.reply_retention),
        reservations_us=to_us(settings.reservation_retention),
        carts_us=to_us(settings.cart_retention),
        checkouts_us=to_us(settings.checkout_retention),
    )
